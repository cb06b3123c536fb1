// The pages of the cloud extension. Loaded by the WebUI, and by the stand-alone app.
(function () {
    if (window.sdawsReady) return; // "Reload UI" runs this file again
    window.sdawsReady = true;

    // Where the host has no logins, this browser is its own user: its jobs are no other's.
    const COOKIE = /(?:^|;\s*)sdaws_user=([0-9a-f]{32})(?:;|$)/;
    if (!COOKIE.test(document.cookie)) {
        const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
        const key = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
        const secure = location.protocol === "https:" ? "; Secure" : "";
        document.cookie = `sdaws_user=${key}; Path=/; Max-Age=31536000; SameSite=Strict${secure}`;
    }

    const LOOK_MS = 400; // at what has come into view
    const BUSY_MS = 1500; // between two questions while something is under way
    const IDLE_MS = 10000; // and while nothing is

    const inputOf = (id) => document.querySelector(`#${id} textarea, #${id} input`);

    function write(box, text) {
        box.value = text;
        box.dispatchEvent(new Event("input", { bubbles: true }));
    }

    // What was trained goes where pictures are made: the checkpoint is chosen there, or the LoRA's
    // tag is put into the prompt.
    function useTrained(name, tag) {
        if (tag) {
            const prompt = document.querySelector("#txt2img_prompt textarea, #sdaws_prompt textarea");
            if (!prompt.value.includes(tag)) write(prompt, `${prompt.value} ${tag}`.trim());
        }
        const box = inputOf("script_txt2img_cloud_use") || inputOf("sdaws_use");
        write(box, `${tag ? "lora" : "checkpoint"} ${name} ${Date.now()}`);
        if (window.switch_to_txt2img) window.switch_to_txt2img();
        else window.sdawsOpenTab("sdaws_tab_generate");
    }

    // Presses the button of the tab whose content has that id.
    window.sdawsOpenTab = (id) => {
        const content = document.getElementById(id);
        const around = content?.parentElement;
        const contents = [...(around?.children || [])].filter((one) => one.matches(".tabitem"));
        const buttons = [...(around?.querySelectorAll(":scope > .tab-nav > button") || [])];
        buttons[contents.indexOf(content)]?.click();
    };

    // Buttons and cards of our own HTML: see the attributes in pages/html.py.
    document.addEventListener("click", (event) => {
        const pressed = event.target.closest && event.target.closest("button");
        if (!pressed) return;
        const { sdawsSend, sdawsOrder, sdawsAsk, sdawsKeep, sdawsCopy, sdawsPicked, sdawsPost } = pressed.dataset;
        if (pressed.dataset.sdawsUse !== undefined) {
            useTrained(pressed.dataset.sdawsUse, pressed.dataset.sdawsTag);
            return;
        }
        const around = pressed.closest(".sdaws-askable");
        if (sdawsPicked !== undefined) {
            const picked = [...document.querySelectorAll("[data-sdaws-pick]:checked")];
            const keys = picked.map((box) => box.dataset.sdawsPick);
            if (keys.length) write(inputOf(sdawsPicked), JSON.stringify(["upload", keys]));
            picked.forEach((box) => (box.checked = false));
        } else if (sdawsPost !== undefined) {
            post(pressed);
        } else if (sdawsSend !== undefined) {
            pressed.disabled = true; // one order a click; the answer brings a new button
            setTimeout(() => (pressed.disabled = false), 1500);
            const answer = pressed.closest("[data-sdaws-question]")?.querySelector("[data-sdaws-answer]");
            const order = answer ? JSON.stringify([...JSON.parse(sdawsOrder), answer.value]) : sdawsOrder;
            write(inputOf(sdawsSend), order);
            if (around) around.classList.remove("sdaws-asking");
        } else if (sdawsAsk !== undefined) {
            around.classList.add("sdaws-asking");
            for (const question of around.querySelectorAll("[data-sdaws-question]")) {
                question.hidden = question.dataset.sdawsQuestion !== sdawsAsk;
                if (question.hidden) continue;
                const answer = question.querySelector("[data-sdaws-answer]");
                (answer || question.querySelector("[data-sdaws-keep]")).focus();
                answer?.setSelectionRange(0, answer.value.lastIndexOf("."));
            }
        } else if (sdawsKeep !== undefined) {
            around.classList.remove("sdaws-asking");
            around.querySelector("[data-sdaws-ask]").focus();
        } else if (sdawsCopy !== undefined) {
            const text = pressed.closest(".sdaws-infotext").querySelector("textarea");
            text.select();
            document.execCommand("copy"); // the newer way needs https
        }
    });
    async function post(button) {
        button.disabled = true; // until its card is drawn anew
        const { sdawsRead } = button.closest("[data-sdaws-read]").dataset;
        try {
            await fetch(button.dataset.sdawsPost, {
                method: "POST", headers: { "Content-Type": "application/json" }, body: "{}",
            });
        } catch (fault) {
            button.disabled = false; // the host does not answer
        }
        if (looks.has(sdawsRead)) looks.get(sdawsRead).due = 0;
    }

    // Not by the page's box for orders: the next one may be written before it is empty again.
    async function saveCaption(caption) {
        let fault = "";
        try {
            const answer = await fetch(caption.dataset.sdawsCaption, {
                method: "POST", headers: { "Content-Type": "application/json" },
                body: JSON.stringify({ text: caption.value }),
            });
            if (!answer.ok) fault = (await answer.json()).error;
        } catch (lost) {
            fault = String(lost);
        }
        caption.nextElementSibling.textContent = fault;
    }
    document.addEventListener("change", (event) => {
        if (event.target.dataset?.sdawsCaption !== undefined) saveCaption(event.target);
        const kind = event.target.dataset?.sdawsPickAll;
        if (kind === undefined) return;
        for (const box of document.querySelectorAll("[data-sdaws-pick]")) {
            if (box.dataset.sdawsKind === kind) box.checked = event.target.checked;
        }
    });
    document.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && event.target.dataset?.sdawsAnswer !== undefined) {
            event.preventDefault();
            event.target.closest("[data-sdaws-question]").querySelector("[data-sdaws-send]").click();
        }
        if (event.key !== "Escape") return;
        document.querySelectorAll(".sdaws-asking").forEach((asked) => {
            asked.classList.remove("sdaws-asking");
            asked.querySelector("[data-sdaws-ask]").focus();
        });
    });

    // One listing brought up to date: only the cards that differ are touched.
    function patch(listing, answer) {
        const grid = listing.lastElementChild;
        const old = new Map([...grid.children].map((cell) => [cell.dataset.sdawsKey, cell]));
        const cells = answer.cards.map((card) => {
            const cell = old.get(card.key) || document.createElement("div");
            // A question that is open, and a caption that is being written, are left alone.
            const isHeld = cell.querySelector(".sdaws-asking") ||
                (cell.contains(document.activeElement) && document.activeElement.matches("textarea"));
            if (cell.dataset.sdawsVersion !== card.version && !isHeld) {
                cell.className = "sdaws-cell";
                cell.dataset.sdawsKey = card.key;
                cell.dataset.sdawsVersion = card.version;
                cell.innerHTML = card.content;
            }
            return cell;
        });
        const same = cells.length === grid.children.length &&
            cells.every((cell, at) => cell === grid.children[at]);
        if (!same) grid.replaceChildren(...cells);
        listing.firstElementChild.innerHTML = answer.note;
        listing.dataset.sdawsVersion = answer.version;
        listing.dataset.sdawsBusy = answer.busy ? "yes" : "";
    }

    const press = (id) => document.getElementById(id)?.click();
    const looks = new Map(); // by reader: when to ask again, and whether a question is out

    async function ask(listing, look) {
        const { sdawsWatch, sdawsVersion, sdawsRead, sdawsBusy } = listing.dataset;
        look.asking = true;
        try {
            const answer = await fetch(`${sdawsWatch}&seen=${sdawsVersion}`);
            if (answer.status === 200) patch(listing, await answer.json());
            // The link has ended; or work has: then the page may show more than it did.
            const ended = sdawsBusy && !listing.dataset.sdawsBusy;
            if (answer.status === 403 || ended) press(sdawsRead);
        } catch (fault) {
            // The host does not answer: it is asked again.
        } finally {
            look.asking = false;
            look.due = Date.now() + (listing.dataset.sdawsBusy ? BUSY_MS : IDLE_MS);
        }
    }

    const seen = (element) => element.offsetParent !== null;
    let open = new Set();

    setInterval(() => {
        // The panel of the WebUI sends on behalf of whom it generates.
        const key = COOKIE.exec(document.cookie)?.[1];
        for (const box of document.querySelectorAll("[id^=script_][id$=_cloud_user] textarea")) {
            if (key && box.value !== key) write(box, key);
        }
        if (document.hidden) return;
        const listings = [...document.querySelectorAll("[data-sdaws-read]")].filter(seen);
        const before = open;
        open = new Set(listings.map((listing) => listing.dataset.sdawsRead));
        for (const listing of listings) {
            const { sdawsRead, sdawsWatch, sdawsWritten } = listing.dataset;
            if (!looks.has(sdawsRead)) looks.set(sdawsRead, { due: 0, asking: false });
            const look = looks.get(sdawsRead);
            if (!before.has(sdawsRead)) {
                look.due = Date.now() + BUSY_MS;
                if (!sdawsWritten) press(sdawsRead); // else somebody may be writing in it
            } else if (sdawsWatch && !look.asking && Date.now() >= look.due) {
                ask(listing, look);
            }
        }
    }, LOOK_MS);
})();
