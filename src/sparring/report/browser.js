// Data and texts. Model text reaches the page as text alone: no function here or below makes markup of it.

const LONGEST = 4000; // characters of a text that are shown at once
const PROSE = 120; // characters from which texts are set as prose, in wide columns
const MOST_MARKS = 500;

async function unpack(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(text)
    : Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// Columns of all items at once; their texts in blocks that are unpacked when they are needed.
class Store {
  constructor(name) {
    this.name = name;
    this.blocks = [];
    this.pending = [];
    this.opened = unpack(`browser-${name}-head`).then((head) => {
      this.head = head;
    });
  }

  // The block of an item.
  of(item) {
    const { starts } = this.head;
    let low = 0;
    for (let high = starts.length; high - low > 1; ) {
      const middle = (low + high) >> 1;
      if (starts[middle] <= item) low = middle;
      else high = middle;
    }
    return low;
  }

  need(block) {
    this.pending[block] ??= unpack(`browser-${this.name}-${block}`).then((content) => {
      this.blocks[block] = content;
    });
    return this.pending[block];
  }

  // One after the other, so that the page answers meanwhile.
  async all() {
    await this.opened;
    for (let block = 0; block < this.head.starts.length; block++) await this.need(block);
  }

  // The text at a place of a block's column; "" where it has none.
  text(block, column, place) {
    const content = this.blocks[block];
    return content.texts[content[column][place]] ?? "";
  }
}

function make(tag, about, ...inner) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) element.setAttribute(name, value);
  element.append(...inner.filter((part) => part !== null && part !== undefined && part !== ""));
  return element;
}

function folded(summary, ...inner) {
  return make("details", {}, make("summary", {}, summary), make("div", {}, ...inner));
}

// What to look for as a pattern: without regard to case, every character for itself.
function pattern(text) {
  return text ? new RegExp(text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "gi") : null;
}

function holds(text, needle) {
  return text !== "" && text.search(needle) >= 0;
}

// Characters that would not show, or would turn the text around them, by their number. A joiner in an emoji stays.
const HIDDEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
const JOINED = /(?:\p{Extended_Pictographic}|\p{Emoji_Modifier}|\ufe0f)$/u;

function visible(text) {
  return text.replace(HIDDEN, (char, at) =>
    char === "\u200d" && JOINED.test(text.slice(Math.max(0, at - 2), at))
      ? char
      : `\\x${char.codePointAt(0).toString(16).padStart(2, "0")}`,
  );
}

function write(element, text, needle) {
  let at = 0;
  let marks = 0;
  for (const found of needle ? text.matchAll(needle) : []) {
    if (++marks > MOST_MARKS) break;
    element.append(visible(text.slice(at, found.index)), make("mark", {}, visible(found[0])));
    at = found.index + found[0].length;
  }
  element.append(visible(text.slice(at)));
}

// A text, cut where it is long; what is looked for is in what is left.
function passage(text, needle, empty = "nothing said") {
  if (!text.trim()) return make("p", { class: "empty" }, empty);
  const pre = make("pre", { dir: "auto", tabindex: "0" });
  if (text.length <= LONGEST) {
    write(pre, text, needle);
    return pre;
  }
  const hit = needle ? text.search(needle) : -1;
  const from = hit > LONGEST / 2 ? hit - 400 : 0;
  const part = text.slice(from, from + LONGEST).replace(/^[\udc00-\udfff]|[\ud800-\udbff]$/g, "");
  write(pre, `${from ? "… " : ""}${part}${from + LONGEST < text.length ? " …" : ""}`, needle);
  const more = make("button", { type: "button", class: "more" }, `Show all ${count(text.length)} characters`);
  more.addEventListener("click", () => {
    pre.replaceChildren();
    write(pre, text, needle);
    pre.focus();
    more.remove();
  });
  return make("div", {}, pre, more);
}

function count(number) {
  return number.toLocaleString("en");
}

function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

function figure(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(3))).replace("-", "−") : "—";
}

function signed(value) {
  return (value > 0 ? "+" : "") + figure(value);
}

function chip(text, kind = "") {
  return make("span", { class: kind, dir: "auto" }, visible(text));
}
