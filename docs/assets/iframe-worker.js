// The search of the site runs in a worker, and a browser starts no worker from a file. There this
// class takes its place: the worker's script runs in a hidden frame of the page, and messages go
// to and fro as they would. The theme's offline plugin knows it by the name of this file.
"use strict";

class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.body.append(this.frame);
    const inner = this.frame.contentWindow;
    inner.postMessage = (data) => this.answer(new MessageEvent("message", { data }));
    const script = inner.document.createElement("script");
    this.started = new Promise((resolve) => script.addEventListener("load", resolve));
    script.addEventListener("error", () =>
      this.answer(new ErrorEvent("error", { message: `${url} cannot be run` })),
    );
    script.src = new URL(url, document.baseURI).href;
    inner.document.body.append(script);
  }

  answer(event) {
    this.dispatchEvent(event);
    this[`on${event.type}`]?.(event);
  }

  async postMessage(data) {
    await this.started;
    const event = new MessageEvent("message", { data: structuredClone(data) });
    this.frame.contentWindow.dispatchEvent(event);
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") {
  window.Worker = FrameWorker;
}
