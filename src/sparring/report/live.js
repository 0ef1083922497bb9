// The page follows its run: it asks for the version, and loads itself anew where that changed. Filters are in the
// address already; place, folds and focus are kept here.
(() => {
  "use strict";
  const live = JSON.parse(document.querySelector('meta[name="sparring-live"]').content);
  const KEY = `sparring-live ${location.pathname}`;
  const QUIET = 1500; // milliseconds after the last touch: nobody is disturbed in the middle of something
  const DRAWN = 5000; // milliseconds that the page's own script may take to draw
  let touched = 0;
  for (const kind of ["input", "keydown", "pointerdown", "wheel", "touchmove"])
    addEventListener(kind, () => (touched = Date.now()), { passive: true, capture: true });

  const bar = document.createElement("div");
  bar.id = "sparring-live";
  bar.setAttribute("role", "status");
  bar.style.cssText =
    "position:fixed;right:12px;bottom:12px;max-width:min(90vw,44em);padding:6px 14px;border-radius:16px;font-size:13px;" +
    "background:var(--card,Canvas);color:var(--ink,CanvasText);border:1px solid var(--muted,GrayText);z-index:9";
  document.body.append(bar);
  document.body.style.paddingBottom = "44px";

  // Elements by what they are called; of those called alike, by their number.
  const named = (selector, name) => {
    const seen = new Map();
    const found = [...document.querySelectorAll(selector)].map((element) => {
      const own = element.id || name(element) || "";
      seen.set(own, (seen.get(own) ?? 0) + 1);
      return [`${own} ${seen.get(own)}`, element];
    });
    return new Map(found);
  };
  const headings = () => named("h1, h2, h3", (heading) => heading.textContent.trim());
  const folds = () => named("details", (fold) => fold.querySelector("summary")?.textContent.trim());
  const fields = () => named("input, select, textarea, button", (field) => field.name || field.textContent.trim());

  const remember = () => {
    const above = [...headings()].filter(([, heading]) => heading.getBoundingClientRect().top <= 1).pop();
    const focus = [...fields()].find(([, field]) => field === document.activeElement);
    const kept = {
      y: scrollY,
      heading: above && [above[0], above[1].getBoundingClientRect().top],
      folds: [...folds()].map(([name, fold]) => [name, fold.open]),
      focus: focus && [focus[0], focus[1].type === "search" ? focus[1].selectionStart : null],
    };
    try {
      sessionStorage.setItem(KEY, JSON.stringify(kept));
    } catch {
      // No storage: the page begins at its top.
    }
  };

  const recall = () => {
    let kept = null;
    try {
      kept = JSON.parse(sessionStorage.getItem(KEY));
      sessionStorage.removeItem(KEY);
    } catch {
      // Nothing was kept.
    }
    if (!kept) return;
    const unfolded = new Map(kept.folds);
    const settle = () => {
      if (touched) return;
      for (const [name, fold] of folds()) {
        if (unfolded.has(name)) fold.open = unfolded.get(name);
        unfolded.delete(name);
      }
      const heading = kept.heading && headings().get(kept.heading[0]);
      scrollTo(0, heading ? scrollY + heading.getBoundingClientRect().top - kept.heading[1] : kept.y);
    };
    const field = kept.focus && fields().get(kept.focus[0]);
    field?.focus({ preventScroll: true });
    if (kept.focus?.[1] != null) field?.setSelectionRange?.(kept.focus[1], kept.focus[1]);
    // What the page's own script draws comes later, and moves what is below it.
    const drawn = new MutationObserver(() => requestAnimationFrame(settle));
    drawn.observe(document.body, { childList: true, subtree: true, attributeFilter: ["data-ready"] });
    setTimeout(() => drawn.disconnect(), DRAWN);
    settle();
  };

  const ago = (seconds) =>
    seconds < 90 ? `${seconds} seconds` : seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds / 3600)} hours`;
  const tell = (news) => {
    const state = news.ended ? "The run has ended." : `Live. Last change ${ago(news.quiet)} ago.`;
    bar.textContent = news.problem ? `The page could not be made: ${news.problem} (tried again)` : state;
  };
  const busy = () => document.hidden || Date.now() - touched < QUIET || !getSelection().isCollapsed;

  const look = async () => {
    try {
      const answer = await fetch("/version", { cache: "no-store" });
      const news = await answer.json();
      tell(news);
      if (news.version !== live.version && !busy()) {
        remember();
        location.reload();
        return;
      }
    } catch {
      bar.textContent = "No longer live: the server has stopped. This is the last page it made.";
    }
    setTimeout(look, live.every * 1000);
  };
  history.scrollRestoration = "manual";
  tell(live);
  recall();
  setTimeout(look, live.every * 1000);
})();
