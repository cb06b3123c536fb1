// The panel of the cloud extension in txt2img and img2img.
(function () {
    if (window.sdawsGenerate) return; // "Reload UI" runs this file again

    const LOOK_MS = 400;
    const TABS = ["txt2img", "img2img"];
    // The name of the error that means: not without the user's word.
    const REFUSAL = "ModelsNotInCloud: ";
    // As in the panel's dropdown.
    const LOCAL = " · on this machine, ";

    const write = (box, text) => {
        if (!box || box.value === text) return;
        box.value = text;
        box.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const part = (tab, name, what) => document.querySelector(`#script_${tab}_cloud_${name}${what}`);
    const said = {};

    // What the last generation was refused with goes to the panel.
    setInterval(() => {
        for (const tab of TABS) {
            const log = document.querySelector(`#html_log_${tab}`);
            const text = log ? log.textContent : "";
            if (!log || said[tab] === text) continue;
            said[tab] = text;
            const error = log.querySelector(".error");
            const refused = error && error.textContent.startsWith(REFUSAL);
            write(
                part(tab, "refused", " textarea"),
                refused ? error.textContent.slice(REFUSAL.length) : "",
            );
            // What was only on this machine may be in the cloud by now.
            const chosen = part(tab, "checkpoint", " input");
            const refresh = part(tab, "refresh", "");
            if (text && !refused && refresh && chosen && chosen.value.includes(LOCAL)) {
                refresh.click();
            }
        }
    }, LOOK_MS);

    // Presses the host's own button, and lets it read the panel before anything else changes there.
    window.sdawsGenerate = async (tab) => {
        const pause = () => new Promise((done) => setTimeout(done, 100));
        await pause();
        document.querySelector(`#${tab}_generate`)?.click();
        await pause();
        return []; // no inputs, for the step that follows
    };
})();
