// Beside the Dreambooth extension's own "Train": the way to our Training page with its settings.
// It is only looked at, never called or changed; it is known by the ids that its tab has always had.
(function () {
    if (window.sdawsDreamboothReady) return; // "Reload UI" runs this file again
    window.sdawsDreamboothReady = true;

    const LOOK_MS = 1000;
    const TAB = "#tab_dreambooth_interface";

    function chosenModel(tab) {
        for (const label of tab.querySelectorAll("label")) {
            const name = label.querySelector("span")?.textContent.trim();
            if (name === "Model" || label.closest("#model_name")) {
                return label.querySelector("input")?.value.trim() || "";
            }
        }
        return "";
    }

    function openTraining(model) {
        const buttons = [...document.querySelectorAll("#tabs > .tab-nav > button")];
        const panels = [...document.querySelectorAll("#tabs > .tabitem")];
        buttons[panels.findIndex((panel) => panel.id === "tab_sdaws_cloud")]?.click();
        document.querySelector("#sdaws_tab_training-button")?.click();
        const box = document.querySelector("#sdaws_training_wanted textarea, #sdaws_training_wanted input");
        box.value = model;
        box.dispatchEvent(new Event("input", { bubbles: true }));
    }

    setInterval(() => {
        const train = document.querySelector(`${TAB} #db_train`);
        if (!train || document.querySelector("#sdaws_dreambooth")) return;
        const button = document.createElement("button");
        button.id = "sdaws_dreambooth";
        button.type = "button";
        button.className = train.className;
        button.textContent = "Train in the cloud";
        button.title = "With the settings that were saved last";
        button.addEventListener("click", () => openTraining(chosenModel(document.querySelector(TAB))));
        train.after(button);
    }, LOOK_MS);
})();
