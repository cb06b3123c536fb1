// Uploads from this browser, straight to the object store. The host only tells where parts go.
(function () {
    if (window.sdawsUploadReady) return; // "Reload UI" runs this file again
    window.sdawsUploadReady = true;

    const LANES = 3;
    const TRIES = 5;
    const KEPT = "sdaws_upload:"; // in localStorage: the id of an upload that was interrupted

    const table = new Uint32Array(256).map((_, byte) => {
        let crc = byte;
        for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
        return crc;
    });
    function crc32(bytes) {
        let crc = -1;
        for (let at = 0; at < bytes.length; at++) crc = table[(crc ^ bytes[at]) & 255] ^ (crc >>> 8);
        const sum = ~crc >>> 0;
        return btoa(String.fromCharCode(sum >>> 24, (sum >>> 16) & 255, (sum >>> 8) & 255, sum & 255));
    }

    async function ask(act, body) {
        // Anew each time: links end, and the page keeps the newest.
        const link = document.querySelector("#sdaws_browser_link textarea, #sdaws_browser_link input").value;
        const answer = await fetch(link.replace("?", `/${act}?`), {
            method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
        });
        const told = await answer.json();
        if (!answer.ok) throw Object.assign(new Error(told.error), { status: answer.status });
        return told;
    }

    function put(url, bytes, headers, sent, signal) {
        return new Promise((resolve, reject) => {
            const request = new XMLHttpRequest(); // fetch tells no progress of what it sends
            request.open("PUT", url);
            for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
            request.upload.onprogress = (event) => sent(event.loaded);
            request.onload = () => {
                const tag = request.getResponseHeader("ETag");
                if (request.status < 300 && tag) resolve(tag);
                else reject(Object.assign(new Error(`${request.status}`), { status: request.status }));
            };
            request.onerror = () => reject(new Error("network"));
            request.onabort = () => reject(new Error("stopped"));
            signal.addEventListener("abort", () => request.abort());
            request.send(bytes);
        });
    }

    class Upload {
        constructor(file, type, line) {
            Object.assign(this, { file, type, line, stop: new AbortController(), sent: new Map() });
            this.kept = `${KEPT}${type}:${file.name}:${file.size}:${file.lastModified}`;
        }

        async plan() {
            const id = localStorage.getItem(this.kept);
            if (id) {
                try {
                    return await ask("go_on", { id });
                } catch (fault) {
                    if (![404, 409].includes(fault.status)) throw fault;
                }
            }
            const { name, size } = this.file;
            const made = await ask("begin", { name, size, type: this.type });
            localStorage.setItem(this.kept, made.id);
            return made;
        }

        async run() {
            let plan = await this.plan();
            const tags = new Map(plan.arrived);
            for (const number of tags.keys()) this.sent.set(number, this.length(plan, number));
            this.began = Date.now();
            this.before = this.done();
            const urls = new Map(plan.parts);
            const waiting = [...urls.keys()].sort((a, b) => b - a);
            const lane = async () => {
                for (let number; (number = waiting.pop()) !== undefined;) {
                    for (let attempt = 1; ; attempt++) {
                        try {
                            tags.set(number, await this.part(plan, number, urls.get(number)));
                            break;
                        } catch (fault) {
                            this.sent.delete(number);
                            if (this.stop.signal.aborted || attempt === TRIES) throw fault;
                            if (fault.status === 403) {
                                plan = await ask("go_on", { id: plan.id });
                                for (const [other, url] of plan.parts) urls.set(other, url);
                            } else {
                                await new Promise((go) => setTimeout(go, 500 * 2 ** attempt));
                            }
                        }
                    }
                }
            };
            await Promise.all(Array.from({ length: LANES }, lane));
            this.line.say("finishing");
            const sorted = [...tags].sort((a, b) => a[0] - b[0]);
            const made = await ask("complete", { id: plan.id, name: this.file.name, tags: sorted });
            localStorage.removeItem(this.kept);
            return made.is_ready;
        }

        length(plan, number) {
            return Math.min(plan.part_size, this.file.size - (number - 1) * plan.part_size);
        }

        async part(plan, number, url) {
            const start = (number - 1) * plan.part_size;
            const bytes = await this.file.slice(start, start + plan.part_size).arrayBuffer();
            const headers = { "Content-Type": "application/octet-stream" };
            if (plan.checksum === "crc32") {
                headers["x-amz-checksum-crc32"] = crc32(new Uint8Array(bytes));
            }
            const tag = await put(url, bytes, headers, (count) => {
                this.sent.set(number, count);
                this.show();
            }, this.stop.signal);
            this.sent.set(number, this.length(plan, number));
            return tag;
        }

        done() {
            return [...this.sent.values()].reduce((sum, count) => sum + count, 0);
        }

        show() {
            const [done, total] = [this.done(), this.file.size];
            const speed = (done - this.before) / Math.max(0.001, (Date.now() - this.began) / 1000);
            const left = speed > 0 ? `, ${Math.ceil((total - done) / speed)} s` : "";
            const [d, t, s] = [done, total, speed].map((count) => (count / 1e6).toFixed(1));
            this.line.bar(done / total, `${d} / ${t} MB, ${s} MB/s${left}`);
        }
    }

    // One line of the list: its words are the page's own templates, which the WebUI translates.
    class Line {
        constructor(box, name) {
            this.element = box.querySelector("template").content.firstElementChild.cloneNode(true);
            this.find(".sdaws-strong").textContent = name;
            box.querySelector(".sdaws-browser-lines").append(this.element);
        }
        find(selector) {
            return this.element.querySelector(selector);
        }
        bar(fraction, text) {
            this.find(".sdaws-fill").style.width = `${100 * fraction}%`;
            this.find(".sdaws-line-text").textContent = text;
        }
        say(state) {
            this.element.dataset.sdawsState = state;
        }
        why(text) {
            this.find(".sdaws-line-text").textContent = text;
        }
    }

    async function send(box, file, type) {
        const line = new Line(box, file.name);
        for (;;) {
            const upload = new Upload(file, type, line);
            line.find("[data-sdaws-pause]").onclick = () => upload.stop.abort();
            line.say("sending");
            try {
                const isReady = await upload.run();
                line.bar(1, "");
                line.say(isReady ? "done" : "sent");
                document.getElementById("sdaws_models_read")?.click();
                return;
            } catch (fault) {
                const isPaused = upload.stop.signal.aborted;
                upload.stop.abort();
                line.say(isPaused ? "paused" : fault.message === "network" ? "unreachable" : "failed");
                if (!isPaused && fault.message !== "network") line.why(fault.message);
            }
            await new Promise((resolve) => (line.find("[data-sdaws-go-on]").onclick = resolve));
        }
    }

    // Pictures that are dropped go to the host, some at a time; then their folder is looked at.
    const DROPS_AT_ONCE = 4;
    let dropped = { batch: "", folder: "" };

    async function keepDropped(zone, files) {
        const box = document.querySelector("#sdaws_folder textarea, #sdaws_folder input");
        if (!dropped.folder || box.value !== dropped.folder) dropped = { batch: `${Date.now()}`, folder: "" };
        const link = document.querySelector("#sdaws_drop_link textarea, #sdaws_drop_link input").value;
        const told = zone.nextElementSibling;
        const [waiting, faults] = [[...files], []];
        let kept = 0;
        const lane = async () => {
            for (let file; (file = waiting.shift());) {
                const place = `/${dropped.batch}/${encodeURIComponent(file.name)}?`;
                try {
                    const answer = await fetch(link.replace("?", place), {
                        method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file,
                    });
                    const said = await answer.json();
                    if (answer.ok) dropped.folder = said.folder;
                    else faults.push(said.error);
                } catch (fault) {
                    faults.push(`${file.name}: ${fault.message}`);
                }
                told.textContent = [`${++kept} / ${files.length}`, ...faults].join("\n");
            }
        };
        await Promise.all(Array.from({ length: DROPS_AT_ONCE }, lane));
        if (!faults.length) told.textContent = "";
        if (!dropped.folder) return;
        box.value = dropped.folder;
        box.dispatchEvent(new Event("input", { bubbles: true }));
        document.getElementById("sdaws_folder_look").click();
    }

    for (const name of ["dragover", "drop"]) {
        document.addEventListener(name, (event) => {
            const zone = event.target.closest && event.target.closest("[data-sdaws-drop]");
            if (!zone) return;
            event.preventDefault();
            if (name === "drop") keepDropped(zone, [...event.dataTransfer.files]);
        });
    }
    document.addEventListener("change", (event) => {
        if (event.target.dataset?.sdawsDropped === undefined) return;
        const files = [...event.target.files];
        event.target.value = "";
        keepDropped(event.target.closest("[data-sdaws-drop]"), files);
    });

    document.addEventListener("click", async (event) => {
        const pressed = event.target.closest && event.target.closest("[data-sdaws-browser-send]");
        if (!pressed) return;
        const box = pressed.closest(".sdaws-browser");
        const [picker, type] = [box.querySelector("input[type=file]"), box.querySelector("select").value];
        const files = [...picker.files];
        picker.value = "";
        for (const file of files) await send(box, file, type); // one has the line to itself
    });
})();
