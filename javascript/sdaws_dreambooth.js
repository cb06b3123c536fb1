// Beside the Dreambooth extension's own "Train": the way to our Training page with its settings.
// It is only looked at, never called or changed; it is known by the ids that its tab has always had.
(function () {
    if (window.sdawsDreamboothReady) return; // "Reload UI" runs this file again
    window.sdawsDreamboothReady = true;

    const LOOK_MS = 1000;
    const TAB = "#tab_dreambooth_interface";

    function chosenModel(tab) {
        const words = ["Model", window.localization?.Model]; // the host translates it
        for (const label of tab.querySelectorAll("label")) {
            const name = label.querySelector("span")?.textContent.trim();
            if (words.includes(name)) {
                return label.querySelector("input")?.value.trim() || "";
            }
        }
        return "";
    }

    const pause = () => new Promise((done) => setTimeout(done, 200));

    async function openTraining(model) {
        window.sdawsOpenTab("tab_sdaws_cloud");
        window.sdawsOpenTab("sdaws_tab_training");
        // What the page has to choose from comes from the server; without one it says so itself.
        const chosen = document.querySelector("#sdaws_training_base input");
        for (let left = 100; left > 0 && !chosen.value; left--) await pause();
        const box = document.querySelector("#sdaws_training_wanted textarea, #sdaws_training_wanted input");
        box.value = model;
        box.dispatchEvent(new Event("input", { bubbles: true }));
    }

    setInterval(() => {
        const train = document.querySelector(`${TAB} #db_train`);
        const made = document.querySelector("#sdaws_dreambooth_button");
        if (!train || !made || document.querySelector("#sdaws_dreambooth")) return;
        const button = made.content.firstElementChild.cloneNode(true);
        button.id = "sdaws_dreambooth";
        button.className = train.className;
        button.addEventListener("click", () => openTraining(chosenModel(document.querySelector(TAB))));
        train.after(button);
    }, LOOK_MS);
})();
