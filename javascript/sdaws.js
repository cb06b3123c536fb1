// The pages of the cloud extension. Loaded by the WebUI, and by the stand-alone app.
(function () {
    if (window.sdawsReady) return; // "Reload UI" runs this file again
    window.sdawsReady = true;

    // Where the host has no logins, this browser is its own user: its jobs are no other's.
    if (!/(^|;\s*)sdaws_user=[0-9a-f]{32}(;|$)/.test(document.cookie)) {
        const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
        const key = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
        const secure = location.protocol === "https:" ? "; Secure" : "";
        document.cookie = `sdaws_user=${key}; Path=/; Max-Age=31536000; SameSite=Strict${secure}`;
    }

    const LOOK_MS = 400;
    const REFRESH_MS = 4000;

    // A card of the Jobs page hands its job's id to the hidden box that the page listens to.
    document.addEventListener("click", (event) => {
        const card = event.target.closest && event.target.closest("[data-sdaws-job]");
        const box = card && document.querySelector("#sdaws_job textarea, #sdaws_job input");
        if (!box) return;
        box.value = card.dataset.sdawsJob;
        box.dispatchEvent(new Event("input", { bubbles: true }));
    });

    const seen = (element) => element.offsetParent !== null;
    let open = new Set();
    let quietSince = Date.now();

    // A page reads its list when it comes into view, and again while something on it is under way.
    setInterval(() => {
        if (document.hidden) return;
        const buttons = [...document.querySelectorAll(".sdaws-live")].filter(seen);
        const due = Date.now() - quietSince >= REFRESH_MS;
        const busy = due && [...document.querySelectorAll(".sdaws-badge.sdaws-busy")].some(seen);
        if (due) quietSince = Date.now();
        for (const button of buttons) {
            if (busy || !open.has(button)) button.click();
        }
        open = new Set(buttons);
    }, LOOK_MS);
})();
