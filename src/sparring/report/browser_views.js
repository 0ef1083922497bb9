// A view: a form that says what is wanted, and the pages of what was found. The address keeps what is wanted.

const PAGE = 10;

class View {
  constructor(root, kind) {
    this.root = root;
    this.kind = kind;
    this.name = root.dataset.name;
    this.form = root.querySelector("form");
    this.list = root.querySelector(".items");
    this.told = root.querySelector(".told");
    this.found = [];
    this.page = 0;
    this.asked = 0;
    this.ready = kind.store.opened.then(() => kind.prepare());
    this.listen();
  }

  listen() {
    let waiting = 0;
    const soon = (milliseconds) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.apply(), milliseconds);
    };
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      soon(0);
    });
    this.form.addEventListener("input", (event) => soon(event.target.tagName === "INPUT" ? 150 : 0));
    this.form.addEventListener("reset", () => soon(0));
    // Somebody will soon look for a text: all texts are needed then.
    this.form.elements.text.addEventListener("focus", () => this.kind.store.all(), { once: true });
    for (const nav of this.root.querySelectorAll("nav")) {
      for (const button of nav.querySelectorAll("button")) {
        button.addEventListener("click", () => this.turn(this.page + Number(button.dataset.go)));
      }
      const input = nav.querySelector("input");
      input.addEventListener("change", () => this.turn(Math.trunc(Number(input.value)) - 1));
    }
  }

  get wanted() {
    const fields = [...new FormData(this.form)].map(([name, value]) => [name, value.trim()]);
    return Object.fromEntries(fields.filter(([, value]) => value !== ""));
  }

  get pages() {
    return Math.max(1, Math.ceil(this.found.length / PAGE));
  }

  // Take over what an address says; fields that it doesn't name are empty.
  restore(given) {
    for (const field of this.form.elements) {
      if (field.name) field.value = given.get(field.name) ?? "";
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.selectedIndex = 0;
    }
    return this.apply(Math.max(0, Number(given.get("page") ?? 1) - 1 || 0), false);
  }

  async apply(page = 0, keep = true) {
    const asked = ++this.asked;
    const { wanted } = this;
    this.root.setAttribute("aria-busy", "true");
    await this.ready;
    if (wanted.text) await this.kind.store.all();
    if (asked !== this.asked) return;
    this.needle = pattern(wanted.text);
    this.found = this.kind.find(wanted, this.needle);
    for (const option of this.form.querySelectorAll("option[data-measured]")) {
      option.dataset.measured ||= option.textContent;
      option.textContent = `${option.dataset.measured} ${(wanted.measure ?? "").replace("part:", "")}`;
    }
    await this.turn(page, keep, false);
  }

  async turn(page, keep = true, jump = true) {
    const asked = ++this.asked;
    this.page = Math.min(Math.max(0, page || 0), this.pages - 1);
    const shown = this.found.slice(this.page * PAGE, (this.page + 1) * PAGE);
    const { store } = this.kind;
    await Promise.all(shown.map((item) => store.need(store.of(item))));
    if (asked !== this.asked) return;
    this.list.replaceChildren(...shown.map((item) => this.kind.card(item, this.needle)));
    for (const mark of this.list.querySelectorAll("pre > mark:first-of-type")) {
      mark.parentElement.scrollTop = mark.offsetTop - mark.parentElement.offsetTop - 60;
    }
    if (!shown.length) this.list.append(make("p", { class: "caption" }, "Nothing is like that. Reset shows everything."));
    this.told.textContent = this.kind.told(this.found.length);
    this.number();
    this.root.removeAttribute("aria-busy");
    if (jump && this.told.getBoundingClientRect().top < 0) this.told.scrollIntoView();
    if (keep) this.keep();
  }

  number() {
    for (const nav of this.root.querySelectorAll("nav")) {
      const input = nav.querySelector("input");
      nav.hidden = this.pages === 1;
      input.value = this.page + 1;
      input.max = this.pages;
      nav.querySelector(".of").textContent = `of ${count(this.pages)}`;
      nav.querySelector('[data-go="-1"]').disabled = this.page === 0;
      nav.querySelector('[data-go="1"]').disabled = this.page === this.pages - 1;
    }
  }

  keep() {
    const { wanted } = this;
    if (wanted.measure === "payoff") delete wanted.measure;
    const fields = new URLSearchParams({ browse: this.name, ...wanted });
    if (this.page) fields.set("page", this.page + 1);
    history.replaceState(null, "", `#${fields}`);
  }
}

function start() {
  const root = document.getElementById("browser");
  const app = root.querySelector(".app");
  const views = [...app.querySelectorAll(".view")].map((view) => new View(view, new KINDS[view.dataset.name](new Store(view.dataset.name))));
  const buttons = [...app.querySelectorAll("[data-view]")];
  const choose = (name) => {
    for (const view of views) view.root.hidden = view.name !== name;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.view === name));
  };
  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const chosen = views.find((view) => view.name === given.get("browse")) ?? views[0];
    choose(chosen.name);
    const nothing = new URLSearchParams();
    return Promise.all(views.map((view) => view.restore(view === chosen ? given : nothing)));
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      choose(button.dataset.view);
      views.find((view) => view.name === button.dataset.view).keep();
    });
  }
  window.addEventListener("hashchange", () => {
    if (location.hash.startsWith("#browse=")) read();
  });
  app.hidden = false;
  read().then(
    () => {
      root.dataset.ready = "true";
      if (location.hash.startsWith("#browse=")) root.scrollIntoView();
    },
    (error) => {
      app.replaceChildren(make("p", { class: "caption" }, `This browser can't unpack the turns: ${error}.`));
    },
  );
}

start();
