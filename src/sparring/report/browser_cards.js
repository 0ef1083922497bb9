// What is browsed: threads of turns and judged pairs. Each kind finds the items that are wanted and draws one of them.

function between(value, least, most) {
  return typeof value === "number" && value >= least && value <= most;
}

function bounds(least, most) {
  return [least === undefined ? -Infinity : Number(least), most === undefined ? Infinity : Number(most)];
}

class Threads {
  constructor(store) {
    this.store = store;
  }

  prepare() {
    const { head } = this.store;
    this.total = head.threads.step.length;
    this.turns = head.turns.role.length;
    this.first = [...head.threads.first, this.turns];
    this.longer = [0]; // where a thread's longer texts begin
    for (const more of head.threads.more) this.longer.push(this.longer.at(-1) + more);
    this.hit = new Uint8Array(this.turns);
  }

  // Threads that are wanted, in the order that is wanted; their turns that match are noted in `hit`.
  find(wanted, needle) {
    const { head } = this.store;
    const fits = this.fitting(wanted);
    const measure = this.measure(wanted.measure);
    const [least, most] = bounds(wanted.least, wanted.most);
    const ranged = wanted.least !== undefined || wanted.most !== undefined;
    const role = wanted.role === undefined ? -1 : head.roles.indexOf(wanted.role);
    this.partial = ranged || role >= 0 || needle !== null;
    this.hit.fill(0);
    this.hits = 0;
    const found = [];
    for (let thread = 0; thread < this.total; thread++) {
      if (!fits(thread)) continue;
      const whole = needle !== null && role < 0 && this.about(thread, needle);
      let hits = 0;
      for (let turn = this.first[thread]; turn < this.first[thread + 1]; turn++) {
        if (role >= 0 && head.turns.role[turn] !== role) continue;
        if (ranged && !between(measure[turn], least, most)) continue;
        if (needle !== null && !whole && !this.says(thread, turn, needle)) continue;
        this.hit[turn] = 1;
        hits++;
      }
      if (hits) found.push(thread);
      this.hits += hits;
    }
    return this.sorted(found, wanted.sort, measure, role < 0);
  }

  fitting(wanted) {
    const { runs, problems, finishes, threads, turns } = this.store.head;
    const [from, to] = bounds(wanted.from, wanted.to);
    const run = wanted.run === undefined ? -1 : runs.indexOf(wanted.run);
    const cut = finishes.indexOf("length");
    const problem = problems.indexOf((wanted.state ?? "").replace("problem:", ""));
    const reserved = problems.indexOf("reserved");
    const states = {
      answered: (thread) => threads.problem[thread] === 0,
      alive: (thread) => threads.problem[thread] === 0 && !threads.dead[thread],
      dead: (thread) => threads.dead[thread],
      invalid: (thread) => threads.problem[thread] > 0 && threads.problem[thread] !== reserved,
      cut: (thread) => turns.finish.slice(this.first[thread], this.first[thread + 1]).includes(cut),
    };
    const state = states[wanted.state] ?? ((thread) => wanted.state === undefined || threads.problem[thread] === problem);
    return (thread) =>
      (wanted.run === undefined || threads.run[thread] === run) &&
      threads.step[thread] >= from &&
      threads.step[thread] <= to &&
      state(thread);
  }

  measure(name = "payoff") {
    const { head } = this.store;
    return name.startsWith("part:") ? (head.parts[name.slice(5)] ?? []) : (head.turns[name] ?? []);
  }

  // By step as played; or by the turns that match: of any role, by the answers where there are some.
  sorted(found, sort, measure, anyone) {
    const { run, step, query } = this.store.head.threads;
    const up = this.store.head.turns.up;
    const sign = sort === "last" ? -1 : 1;
    const played = (a, b) => sign * (step[a] - step[b]) || run[a] - run[b] || a - b;
    if (sort === undefined || sort === "last") return found.sort(played);
    const keys = new Map();
    for (const thread of found) {
      let [low, high] = [Infinity, -Infinity];
      const level = query[thread] ? 0 : -1;
      for (const answers of anyone ? [true, false] : [false]) {
        for (let turn = this.first[thread]; turn < this.first[thread + 1]; turn++) {
          const value = measure[turn];
          if (!this.hit[turn] || typeof value !== "number" || (answers && up[turn] !== level)) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
        }
        if (low <= high) break;
      }
      if (low <= high) keys.set(thread, { high: -high, low, spread: low - high }[sort]);
    }
    const key = (thread) => keys.get(thread) ?? Infinity;
    return found.sort((a, b) => (key(a) === key(b) ? played(a, b) : key(a) - key(b)));
  }

  // Whether the prompt (where no turn says it) or a longer text of the data set holds it.
  about(thread, needle) {
    const [block, place, , longer] = this.at(thread);
    const { query, more } = this.store.head.threads;
    if (!query[thread] && holds(this.store.text(block, "prompt", place), needle)) return true;
    for (let at = longer; at < longer + more[thread]; at++) {
      if (holds(this.store.text(block, "more", at), needle)) return true;
    }
    return false;
  }

  says(thread, turn, needle) {
    const [block, , offset] = this.at(thread);
    const place = turn - offset;
    return (
      holds(this.store.text(block, "text", place), needle) || holds(this.store.text(block, "thought", place), needle)
    );
  }

  // A thread's block, its place there, the block's first turn, and where its longer texts begin there.
  at(thread) {
    const block = this.store.of(thread);
    const start = this.store.head.starts[block];
    return [block, thread - start, this.first[start], this.longer[thread] - this.longer[start]];
  }

  told(found) {
    const turns = this.partial ? `; ${counted(this.hits, "turn")} of ${count(this.turns)} match` : "";
    return `${count(found)} of ${counted(this.total, "thread")}${turns}.`;
  }

  card(thread, needle) {
    const { head } = this.store;
    const [block, place, offset, longer] = this.at(thread);
    const members = Array.from({ length: this.first[thread + 1] - this.first[thread] }, (_, i) => this.first[thread] + i);
    const text = (column, at) => this.store.text(block, column, at);
    const queried = head.threads.query[thread];
    const answers = members.filter((turn) => head.turns.up[turn] === (queried ? 0 : -1));
    const long = answers.some((turn) => text("text", turn - offset).length > PROSE);
    const card = make("article", { class: long ? "thread card prose" : "thread card" }, this.heading(thread, text("about", place)));
    const known = [];
    for (let at = longer; at < longer + head.threads.more[thread]; at++) {
      const name = text("named", at);
      const said = passage(text("more", at), needle);
      const reference = make("div", { class: "turn reference" }, make("h4", {}, `reference: ${visible(name)}`), said);
      known.push(head.references.includes(name) ? reference : folded(`${visible(name)}, from the data`, said));
    }
    if (queried) card.append(this.turn(thread, members[0], needle, text("asked", place), text("prompt", place)), ...known);
    else card.append(...this.prompt(thread, needle, known));
    if (answers.length) {
      card.append(make("div", { class: "answers" }, ...answers.map((turn) => this.answer(thread, turn, needle))));
    }
    return card;
  }

  // What a data set asks, and what is known of it.
  prompt(thread, needle, known) {
    const [block, place] = this.at(thread);
    const text = this.store.text(block, "prompt", place);
    return [make("div", { class: "turn prompt" }, make("h4", {}, "prompt"), passage(text, needle)), ...known];
  }

  answer(thread, turn, needle) {
    return this.turn(thread, turn, needle);
  }

  heading(thread, about) {
    const { runs, problems, threads } = this.store.head;
    const problem = problems[threads.problem[thread]];
    const name = runs.length > 1 ? ` · ${runs[threads.run[thread]]}` : "";
    const chips = [];
    if (problem === "reserved") chips.push(chip("reserved for the tests: not answered", "warn"));
    else if (problem) chips.push(chip(`invalid: ${problem}`, "warn"));
    if (threads.dead[thread]) chips.push(chip("dead group: all answers paid the same", "warn"));
    if (about) chips.push(chip(about));
    return make("header", {}, make("h3", {}, visible(`Step ${threads.step[thread]}${name}`)), make("div", { class: "chips" }, ...chips));
  }

  // One turn, with what replies to it folded below.
  turn(thread, turn, needle, asked = "", prompt = "") {
    const { roles, turns, threads } = this.store.head;
    const [block, , offset] = this.at(thread);
    const place = turn - offset;
    const [said, thought] = ["text", "thought"].map((column) => this.store.text(block, column, place));
    const role = roles[turns.role[turn]];
    const matched = this.partial && this.hit[turn] ? " hit" : "";
    const box = make("div", { class: `turn${matched}`, "data-role": role });
    box.append(make("h4", {}, make("span", {}, visible(role)), make("strong", {}, this.paid(thread, turn))));
    box.append(...this.words(thread, asked || said, thought, needle));
    box.append(this.chips(turn, this.store.text(block, "facts", place)));
    if (asked) box.append(folded("as written, with what stands around the query", passage(said, needle)));
    if (prompt) box.append(folded("prompt", passage(prompt, null)));
    if (turn > this.first[thread] || !threads.query[thread]) {
      box.append(...this.replies(thread, turn).map((reply) => this.reply(thread, reply, needle)));
    }
    return box;
  }

  paid(thread, turn) {
    const { payoff, frozen } = this.store.head.turns;
    return typeof payoff[turn] === "number" ? `payoff ${figure(payoff[turn])}` : frozen[turn] ? "" : "not paid";
  }

  words(thread, said, thought, needle) {
    const words = passage(said, needle);
    if (!thought) return [words];
    const aside = folded(`thought, ${counted(thought.length, "character")}`, passage(thought, needle));
    aside.open = needle !== null && holds(thought, needle);
    return [aside, words];
  }

  replies(thread, turn) {
    const { up } = this.store.head.turns;
    const found = [];
    for (let reply = turn + 1; reply < this.first[thread + 1]; reply++) {
      if (up[reply] === turn - this.first[thread]) found.push(reply);
    }
    return found;
  }

  reply(thread, turn, needle) {
    const { roles, finishes, turns } = this.store.head;
    const cut = finishes[turns.finish[turn]] === "length" ? ", cut off" : "";
    const aside = folded(`${visible(roles[turns.role[turn]])}${cut}`, this.turn(thread, turn, needle));
    aside.open = needle !== null && Boolean(this.hit[turn]) && this.says(thread, turn, needle);
    return aside;
  }

  chips(turn, facts) {
    const { finishes, turns } = this.store.head;
    const found = Object.entries(this.store.head.parts)
      .filter(([, column]) => column[turn] !== false)
      .map(([name, column]) => chip(`${name} ${figure(column[turn])}`));
    const advantage = turns.advantage[turn];
    if (typeof advantage === "number") {
      const [mark, kind] = advantage > 0 ? ["▲ ", "up"] : advantage < 0 ? ["▼ ", "down"] : ["", ""];
      found.push(chip(`${mark}advantage ${signed(advantage)}`, kind));
    }
    if (typeof turns.tokens[turn] === "number") found.push(chip(counted(turns.tokens[turn], "token")));
    const finish = finishes[turns.finish[turn]];
    if (finish === "length") found.push(chip("cut off", "warn"));
    else if (finish && finish !== "stop") found.push(chip(finish));
    if (turns.frozen[turn]) found.push(chip("by the frozen start"));
    else if (!turns.trained[turn]) found.push(chip("not trained"));
    if (facts) found.push(chip(facts));
    return make("div", { class: "chips" }, ...found);
  }
}

class Pairs {
  constructor(store) {
    this.store = store;
  }

  prepare() {
    this.total = this.store.head.pairs.outcome.length;
  }

  find(wanted, needle) {
    const { head } = this.store;
    const { pairs } = head;
    const run = head.runs.indexOf(wanted.run);
    const subset = head.subsets.indexOf(wanted.subset);
    const outcome = head.outcomes.indexOf(wanted.outcome);
    const found = [];
    for (let pair = 0; pair < this.total; pair++) {
      if (wanted.run !== undefined && pairs.run[pair] !== run) continue;
      if (wanted.subset !== undefined && pairs.subset[pair] !== subset) continue;
      if (wanted.evaluation !== undefined && head.evaluations[pairs.evaluation[pair]].name !== wanted.evaluation) continue;
      if (wanted.outcome !== undefined && !(wanted.outcome === "flipped" ? pairs.flipped[pair] : pairs.outcome[pair] === outcome)) continue;
      if (needle === null || this.texts(pair).some((text) => holds(text, needle))) found.push(pair);
    }
    const sign = { high: -1, low: 1 }[wanted.sort];
    const credit = (pair) => this.credit(pair) ?? sign * Infinity;
    return sign ? found.sort((a, b) => sign * (credit(a) - credit(b)) || a - b) : found;
  }

  // Mean preference for the trained model; none where an order has no verdict.
  credit(pair) {
    const { first, second } = this.store.head.pairs;
    const orders = [first[pair], second[pair]].filter((order) => order !== false);
    return orders.includes(null) ? null : orders.reduce((sum, order) => sum + order, 0) / orders.length;
  }

  texts(pair) {
    const block = this.store.of(pair);
    const place = pair - this.store.head.starts[block];
    return ["instruction", "base", "trained", "first", "second"].map((column) => this.store.text(block, column, place));
  }

  told(found) {
    return `${count(found)} of ${counted(this.total, "judged pair")}.`;
  }

  card(pair, needle) {
    const { runs, evaluations, subsets, outcomes, pairs } = this.store.head;
    const about = evaluations[pairs.evaluation[pair]];
    const [instruction, base, trained, ...said] = this.texts(pair);
    const outcome = outcomes[pairs.outcome[pair]];
    const name = runs.length > 1 ? ` · ${runs[pairs.run[pair]]}` : "";
    const chips = [chip({ win: "trained won", loss: "base won", tie: "tie", unparsed: "no verdict" }[outcome], { win: "up", loss: "down", unparsed: "warn" }[outcome])];
    if (pairs.flipped[pair]) chips.push(chip("the winner changes with the order", "warn"));
    if (subsets[pairs.subset[pair]]) chips.push(chip(subsets[pairs.subset[pair]]));
    const long = [instruction, base, trained].some((text) => text.length > PROSE);
    return make(
      "article",
      { class: long ? "thread card prose" : "thread card" },
      make("header", {}, make("h3", {}, visible(`${about.name}${name}`)), make("div", { class: "chips" }, ...chips)),
      make("div", { class: "turn prompt" }, make("h4", {}, "instruction"), passage(instruction, needle)),
      make(
        "div",
        { class: "answers two" },
        this.side("base", about.base, base, outcome === "loss", needle),
        this.side("trained", about.trained, trained, outcome === "win", needle),
      ),
      make("h4", {}, visible(`verdict of ${about.judge}`)),
      make("dl", { class: "orders" }, ...this.order("trained shown first", pairs.first[pair], said[0], needle), ...this.order("base shown first", pairs.second[pair], said[1], needle)),
    );
  }

  side(role, who, text, won, needle) {
    const named = who === role ? role : `${role}: ${visible(who)}`;
    const heading = make("h4", {}, make("span", {}, named), make("strong", {}, won ? "won" : ""));
    return make("div", { class: `turn side-${role}${won ? " won" : ""}` }, heading, passage(text, needle));
  }

  order(name, preference, said, needle) {
    if (preference === false) return [];
    const verdict =
      preference === null
        ? "no verdict that can be read"
        : preference === 0.5
          ? "neither is better (0.5)"
          : `${preference > 0.5 ? "trained" : "base"} is better (${figure(Math.max(preference, 1 - preference))})`;
    const words = said.trim() ? passage(said, needle) : null;
    const shown = words && said.length > 80 ? folded("what it said", words) : words;
    if (shown?.tagName === "DETAILS") shown.open = needle !== null && holds(said, needle);
    return [make("dt", {}, name), make("dd", {}, make("strong", {}, verdict), shown)];
  }
}

const KINDS = { turns: Threads, judged: Pairs };
