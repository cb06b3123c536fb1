// The pages of the cloud extension. Loaded by the WebUI, and by the stand-alone app.
(function () {
    if (window.sdawsReady) return; // "Reload UI" runs this file again
    window.sdawsReady = true;

    const REFRESH_MS = 4000;

    // A card of the Jobs page hands its job's id to the hidden box that the page listens to.
    document.addEventListener("click", (event) => {
        const card = event.target.closest && event.target.closest("[data-sdaws-job]");
        const box = card && document.querySelector("#sdaws_job textarea, #sdaws_job input");
        if (!box) return;
        box.value = card.dataset.sdawsJob;
        box.dispatchEvent(new Event("input", { bubbles: true }));
    });

    // While something on the open page is under way, the page reads itself again.
    setInterval(() => {
        if (document.hidden) return;
        const busy = [...document.querySelectorAll(".sdaws-badge.sdaws-busy")];
        if (!busy.some((badge) => badge.offsetParent !== null)) return;
        for (const button of document.querySelectorAll(".sdaws-live")) {
            if (button.offsetParent !== null) button.click();
        }
    }, REFRESH_MS);
})();
