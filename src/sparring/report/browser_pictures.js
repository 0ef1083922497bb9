// Threads with pictures: the picture beside its question, each answer beside what was read from its description.

const LEAST_SHOWN = 168; // pixels: smaller pictures are enlarged by a whole number

// A response in its parts, in order and without loss: [name, text], names "" for what stands outside of every part.
function sections(text) {
  const tags = /<(description|think)>([^]*?)<\/\1>/g;
  const found = [];
  let at = 0;
  const rest = (end) => {
    const between = text.slice(at, end);
    if (between.trim()) found.push(boxed(between) ?? ["", between]);
  };
  for (const tag of text.matchAll(tags)) {
    rest(tag.index);
    found.push([tag[1] === "think" ? "thought" : tag[1], tag[2]]);
    at = tag.index + tag[0].length;
  }
  rest(text.length);
  return found;
}

// One box with nothing beside it, unpacked.
function boxed(text) {
  const inside = /^\s*\\boxed\s*\{([^]*)\}\s*$/.exec(text)?.[1];
  if (inside === undefined) return null;
  let depth = 0;
  for (const char of inside) {
    depth += char === "{" ? 1 : char === "}" ? -1 : 0;
    if (depth < 0) return null;
  }
  return depth === 0 ? ["answer", inside] : null;
}

class Looks extends Threads {
  pictures(thread) {
    return this.store.head.shown[thread];
  }

  prompt(thread, needle, known) {
    const shown = this.pictures(thread);
    if (!shown.length) return super.prompt(thread, needle, known);
    const [block, place] = this.at(thread);
    const [asked, whole] = ["asked", "prompt"].map((column) => this.store.text(block, column, place));
    const words = make("div", { class: "turn prompt" }, make("h4", {}, asked ? "question" : "prompt"), passage(asked || whole, needle));
    if (asked && whole.replaceAll("[image]", "").trim() !== asked.trim()) words.append(folded("prompt, with its instructions", passage(whole, needle)));
    const pictures = make("div", { class: "pictures" }, ...shown.map((picture) => this.picture(picture)));
    return [make("div", { class: "looked" }, pictures, make("div", {}, words, ...known))];
  }

  picture(place) {
    const { name, file, size } = this.store.head.pictures;
    const data = document.getElementById(`browser-picture-${place}`);
    if (data === null) {
      const where = file[place] ? `no room here: ${file[place]}` : `not kept (${name[place]})`;
      return make("p", { class: "caption" }, "picture: ", visible(where));
    }
    const [width, height] = size[place];
    const times = Math.max(1, Math.floor(LEAST_SHOWN / Math.max(width, height)));
    return make("img", {
      src: `data:${data.type},${data.textContent}`,
      width: width * times,
      height: height * times,
      alt: `the picture, ${width} by ${height} pixels`,
      title: visible(file[place]),
      class: times > 1 ? "enlarged" : "",
    });
  }

  // The first pass, and beside it the second ones.
  answer(thread, turn, needle) {
    const first = super.answer(thread, turn, needle);
    if (!this.pictures(thread).length) return first;
    const second = super.replies(thread, turn).map((reply) => this.turn(thread, reply, needle));
    if (!second.length && this.visual(turn) !== null) {
      second.push(make("p", { class: "empty" }, "No second pass: nothing stands in description tags."));
    }
    if (!second.length) return first;
    first.querySelector("h4 span").append(" · sees the picture");
    for (const one of second) one.querySelector("h4 span")?.append(" · has the description alone");
    return make("div", { class: "passes" }, first, make("div", {}, ...second));
  }

  // What the second pass paid a turn; null where none was played.
  visual(turn) {
    const part = this.store.head.parts.visual?.[turn];
    return typeof part === "number" ? part : null;
  }

  // Replies to a turn that saw a picture stand beside it.
  replies(thread, turn) {
    const beside = this.pictures(thread).length && this.store.head.turns.up[turn] === -1;
    return beside ? [] : super.replies(thread, turn);
  }

  // A reader that is not paid itself pays whose description it read.
  paid(thread, turn) {
    const { up, payoff } = this.store.head.turns;
    if (!this.pictures(thread).length || up[turn] === -1 || typeof payoff[turn] === "number") return super.paid(thread, turn);
    const read = this.first[thread] + up[turn];
    const part = super.replies(thread, read).length === 1 ? this.visual(read) : null;
    return part === null ? "" : `pays visual ${figure(part)}`;
  }

  words(thread, said, thought, needle) {
    const parts = this.pictures(thread).length ? sections(said) : [];
    if (thought) parts.unshift(["thought", thought]);
    if (!parts.some(([name]) => name === "description" || name === "answer")) return super.words(thread, said, thought, needle);
    const rows = parts.flatMap(([name, text]) => [make("dt", {}, name || "beside"), make("dd", {}, passage(text, needle, "nothing"))]);
    return [make("dl", { class: "sections" }, ...rows)];
  }
}

KINDS.turns = Looks;
