// Loads the files of reports/viewer_data.py: scripts, because a page from disk may not fetch.
"use strict";
window.medbench = window.medbench || {};
medbench.data = (() => {
  const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]*$/; // of run ids and task slugs: no way out of the folder
  const KEPT = 32; // chunks in memory, each about a megabyte
  const waiting = new Map();
  const indexes = new Map();
  const chunks = new Map(); // in order of use
  let runList = null;

  window.medbenchIndex = (run, task, part, content) => arrived(`i/${run}/${task}/${part}`, content);
  window.medbenchChunk = (run, task, chunk, samples) => arrived(`c/${run}/${task}/${chunk}`, samples);
  window.medbenchRuns = (rows) => arrived("runs", rows);

  function arrived(key, content) {
    const waiter = waiting.get(key);
    if (waiter) waiter(content);
  }

  function load(key, address) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const done = () => {
        waiting.delete(key);
        script.remove();
      };
      waiting.set(key, (content) => {
        done();
        resolve(content);
      });
      const fail = () => {
        done();
        reject(new Error(`${address} could not be loaded`));
      };
      script.addEventListener("error", fail);
      script.addEventListener("load", () => waiting.has(key) && fail());
      script.src = address;
      document.head.append(script);
    });
  }

  function folder(run, task) {
    if (!NAME.test(run) || !NAME.test(task)) throw new Error("no such run or task");
    return `../${encodeURIComponent(run)}/data/${encodeURIComponent(task)}/`;
  }

  function remembered(cache, key, make) {
    if (!cache.has(key)) {
      const promise = make();
      cache.set(key, promise);
      promise.catch(() => cache.delete(key));
    }
    return cache.get(key);
  }

  async function index(run, task, part) {
    const key = `i/${run}/${task}/${part}`;
    return remembered(indexes, key, () => load(key, `${folder(run, task)}index${part ? `-${part}` : ""}.js`));
  }

  async function chunk(run, task, number) {
    const key = `c/${run}/${task}/${number}`;
    const known = chunks.get(key);
    if (known) {
      chunks.delete(key);
      chunks.set(key, known);
      return known;
    }
    const promise = remembered(chunks, key, () => load(key, `${folder(run, task)}${number}.js`));
    if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
    return promise;
  }

  function runs() {
    runList = runList || load("runs", "../../runs.js").catch(() => []);
    return runList;
  }

  // All rows of a task as they come in, part by part.
  class Rows {
    constructor(run, task) {
      this.run = run;
      this.task = task;
      this.parts = [];
      this.start = [0];
    }

    async open() {
      this.add(await index(this.run, this.task, 0));
      return this;
    }

    async more() {
      if (this.isWhole) return false;
      this.add(await index(this.run, this.task, this.parts.length));
      return true;
    }

    async whole() {
      while (await this.more());
      return this;
    }

    add(part) {
      this.parts.push(part);
      this.start.push(this.start[this.start.length - 1] + part.n);
    }

    get first() {
      return this.parts[0];
    }

    get isWhole() {
      return this.parts.length >= this.first.parts;
    }

    get length() {
      return this.start[this.start.length - 1];
    }

    value(name, row) {
      let part = this.parts.length - 1;
      while (row < this.start[part]) part -= 1;
      const column = this.parts[part][name];
      return column === undefined ? undefined : column[row - this.start[part]];
    }

    category(field, row) {
      let part = this.parts.length - 1;
      while (row < this.start[part]) part -= 1;
      return this.parts[part].category[field][row - this.start[part]];
    }

    repeat(row) {
      return this.value("repeat", row) || 0;
    }

    key(row) {
      return `${this.repeat(row)}/${this.value("ids", row)}`;
    }

    places() {
      if (!this.known || this.known.size < this.length) {
        this.known = new Map();
        for (let row = 0; row < this.length; row += 1) this.known.set(this.key(row), row);
      }
      return this.known;
    }

    chunkOf(row) {
      const starts = this.first.chunks;
      let [low, high] = [0, starts.length - 1];
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (starts[middle] <= row) low = middle;
        else high = middle - 1;
      }
      return low;
    }

    async sample(row) {
      const number = this.chunkOf(row);
      const samples = await chunk(this.run, this.task, number);
      return samples[row - this.first.chunks[number]];
    }
  }

  return { Rows, chunk, runs, isName: (name) => NAME.test(name) };
})();
