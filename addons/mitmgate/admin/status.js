"use strict";
// The status page: drawn from one stream of events. Every text goes through textContent: nothing of a client's is markup.
(() => {
  const KEPT = 300, ROWS = 200, SLOTS = 6;
  const $ = id => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const el = (tag, props, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(props || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") made.className = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter(one => one !== null && one !== undefined));
    return made;
  };
  const svg = (tag, props, ...children) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(props || {})) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const SIGNS = {ok: "●", warn: "▲", bad: "✕"};
  const word = (kind, text) => el("span", {class: `word ${kind}`}, `${SIGNS[kind]} ${text}`);
  const number = value => value === null || value === undefined ? "–"
    : value >= 1e6 ? `${(value / 1e6).toFixed(1)} M` : value >= 1e4 ? `${(value / 1e3).toFixed(0)} k`
    : value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
  const seconds = value => value === null || value === undefined ? "–"
    : value >= 1 ? `${value.toFixed(value >= 10 ? 0 : 2)} s` : value >= 1e-3 ? `${(value * 1e3).toFixed(value >= 1e-2 ? 0 : 1)} ms`
    : `${(value * 1e6).toFixed(0)} µs`;
  const span = value => {
    if (value === null || value === undefined) return "–";
    for (const [unit, size, less, smaller] of [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]])
      if (value >= size) {
        const rest = Math.floor(value % size / smaller);
        return `${Math.floor(value / size)} ${unit}${rest ? ` ${rest} ${less}` : ""}`;
      }
    return `${Math.round(value)} s`;
  };
  const bytes = value => value === null || value === undefined ? "–" : value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)} GiB`
    : `${(value / 2 ** 20).toFixed(0)} MiB`;
  const part = value => value ? `${(value * 100).toFixed(value < 0.1 ? 1 : 0)} %` : "–";
  const clock = text => {
    const at = new Date(text), two = n => String(n).padStart(2, "0");
    return el("time", {datetime: text, title: text}, `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`);
  };
  const ago = (text, now) => span(Math.max(0, now - Date.parse(text) / 1000));
  const table = (heads, rows, nothing) => {
    if (!rows.length) return el("p", {class: "muted"}, nothing);
    return el("table", {}, el("thead", {}, el("tr", {}, ...heads.map(([text, kind, unseen]) => el("th", {scope: "col", class: kind}, unseen ? el("span", {class: "unseen"}, text) : text)))),
      el("tbody", {}, ...rows.map(cells => el("tr", {}, ...cells.map((cell, at) =>
        el("td", {class: heads[at][1]}, ...(Array.isArray(cell) ? cell : [cell])))))));
  };
  const put = (id, ...children) => $(id).replaceChildren(...children);

  let points = [], slots = [], last = null, heard = 0, cpu = new Map(), paused = false, waiting = [], opener = null;

  // The pictures.
  const nice = most => {
    if (most <= 0) return 1;
    const size = 10 ** Math.floor(Math.log10(most));
    return [1, 2, 5, 10].map(n => n * size).find(n => n >= most);
  };
  const stack = (id, series, label) => {
    const room = [60, 120].find(size => points.length <= size) || ($(id).clientWidth < 420 ? 120 : KEPT), shown = points.slice(-room);
    const sums = shown.map(point => series.reduce((sum, one) => sum + one.of(point), 0));
    const most = nice(Math.max(0, ...sums)), width = 600, height = 140, x = at => width - (shown.length - 1 - at) * width / (room - 1);
    const y = value => (height - value / most * (height - 4)).toFixed(1);
    const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label});
    for (const line of [0.5, 1]) picture.append(svg("path", {class: "grid", d: `M0 ${y(most * line)}H${width}`}));
    const base = shown.map(() => 0);
    if (shown.length > 1) for (const one of series) {
      const low = base.map((value, at) => `${x(at).toFixed(1)} ${y(value)}`);
      shown.forEach((point, at) => { base[at] += one.of(point); });
      const high = base.map((value, at) => `${x(at).toFixed(1)} ${y(value)}`);
      picture.append(svg("path", {class: one.class, d: `M${high.join("L")}L${low.reverse().join("L")}Z`}));
    }
    put(id, picture, el("span", {class: "most"}, number(most)), el("span", {class: "ago"}, `${room / 60} min ago`));
  };
  const spark = (name, at) => {
    const room = points.length <= 60 ? 60 : 120, shown = points.slice(-room), values = shown.map(point => point.latency[name][at]);
    const most = Math.max(...values.map(value => value || 0)) || 1;
    let d = "", pen = "M";
    values.forEach((value, place) => {
      if (value === null) { pen = "M"; return; }
      d += `${pen}${(100 - (values.length - 1 - place) * 100 / (room - 1)).toFixed(1)} ${(19 - value / most * 17).toFixed(1)}`;
      pen = "L";
    });
    return svg("svg", {class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true"}, svg("path", {d: d || "M0 0"}));
  };
  const rate = (point, kinds) => Object.values(point.rates).reduce((sum, [kind, value]) => sum + (kinds.includes(kind) ? value : 0), 0);
  const traffic = () => {
    const all = ["admitted", "denied", "failed", "left"], wrong = ["denied", "failed"];
    const totals = new Map();
    for (const point of points) for (const [reason, [kind, value]] of Object.entries(point.rates))
      if (wrong.includes(kind)) totals.set(reason, (totals.get(reason) || 0) + value);
    const ranked = [...totals.keys()].sort((one, other) => totals.get(other) - totals.get(one));
    // A reason keeps its colour as long as it is among the most frequent.
    const top = ranked.slice(0, SLOTS - 1);
    slots = Array.from({length: SLOTS - 1}, (_, at) => top.includes(slots[at]) ? slots[at] : null);
    for (const reason of top) if (!slots.includes(reason)) slots[slots.indexOf(null)] = reason;
    const rest = ranked.filter(reason => !slots.includes(reason));
    const series = slots.map((reason, at) => ({reason, class: `s${at}`, of: point => reason && point.rates[reason] ? point.rates[reason][1] : 0}))
      .filter(one => one.reason);
    if (rest.length) series.push({reason: `${rest.length} more`, class: "s5", of: point => rest.reduce((sum, reason) => sum + (point.rates[reason] ? point.rates[reason][1] : 0), 0)});
    const now = points[points.length - 1], rates = now ? rate(now, all) : 0, denied = now ? rate(now, wrong) : 0;
    $("rate").textContent = number(rates);
    $("denied-rate").textContent = number(denied);
    stack("requests-picture", [{class: "plain", of: point => rate(point, all)}], `Requests a second: ${number(rates)} now`);
    stack("denied-picture", series, `Denied and failed requests a second: ${number(denied)} now`);
    put("legend", ...(series.length ? series.map(one => el("li", {}, svg("svg", {viewBox: "0 0 10 10", "aria-hidden": "true"}, svg("rect", {width: 10, height: 10, rx: 2, class: one.class})),
      `${one.reason} `, el("b", {}, now ? number(one.of(now)) : "–"), " /s")) : [el("li", {class: "muted"}, "Nothing was denied or failed while this page watched.")]));
    if (now) put("latency", table([["Of what", "name", true], ["p50", "number"], ["p95", "number"], ["p99", "number"], ["p95 so far", "spark-cell"]],
      [["gateway", "Gateway's own part"], ["upstream", "Service, to its head"], ["whole", "Whole request"]].map(([name, text]) =>
        [text, ...now.latency[name].map(seconds), spark(name, 1)]), ""));
  };

  // The sections.
  const states = {closed: "ok", open: "bad", "half-open": "warn"};
  const circuits = (data, now) => {
    const rows = data.status.circuits.map(row => {
      const turn = data.turned[`${row.upstream} ${row.endpoint}`], seen = Object.keys(row.workers);
      const told = [];
      if (turn) told.push(el("small", {}, `${turn.state === "closed" ? "closed again" : "opened"} ${ago(turn.time, now)} ago`
        + (turn.state !== "closed" && (turn.why || turn.cause) ? `: ${[turn.why, turn.cause].filter(Boolean).join(", ")}` : "")
        + (turn.state !== "closed" && turn.request_id ? ` (request ${turn.request_id})` : "")));
      if (seen.length > 1) told.push(el("small", {}, seen.map(state => `${row.workers[state]} see it ${state}`).join(", ")));
      const slow = data.upstreams[row.upstream];
      return [[el("b", {}, row.upstream), el("small", {class: "mono"}, row.endpoint), ...told], word(states[row.state] || "warn", row.state || "not known"),
        row.failed_share ? part(row.failed_share) : "–", seconds(slow ? slow[1] : null)];
    });
    const turns = data.turns.length > 1 ? [el("details", {}, el("summary", {}, `${data.turns.length} openings and closings`),
      table([["Time", ""], ["Circuit", ""], ["State", "", true], ["Why", ""]], data.turns.map(turn => [clock(turn.time), turn.circuit, turn.state,
        turn.state === "closed" ? "probes succeeded" : [turn.why, turn.cause].filter(Boolean).join(", ")]), ""))] : [];
    keep("circuit-rows", JSON.stringify([data.status.circuits, data.turned, data.turns.length]),
      () => [table([["Service", ""], ["Circuit", ""], ["Failed", "number"], ["p95", "number"]], rows, "The policy has no service."), ...turns]);
  };
  const drawn = new Map();
  const keep = (id, key, make) => {  // a section is drawn anew where it says something else: what is open in it stays open
    const minute = Math.floor(Date.now() / 5000);
    if (drawn.get(id) === `${key}${minute}`) return;
    const open = [...$(id).querySelectorAll("details")].map(one => one.open), inside = $(id).contains(document.activeElement);
    if (inside && drawn.get(id)?.startsWith(key)) return;
    drawn.set(id, `${key}${minute}`);
    put(id, ...make());
    $(id).querySelectorAll("details").forEach((one, at) => { if (at in open) one.open = open[at]; });
  };
  const services = (data, now) => {
    const status = data.status;
    const rows = [["Counter store", status.store_available ? word("ok", "counts") : word("bad", "away"), ""]];
    for (const row of status.key_sets) rows.push([["Keys of ", el("b", {}, row.issuer)], row.usable ? word("ok", "can verify") : word("bad", "none"),
      [row.age_seconds === null ? "with the policy" : `fetched ${span(row.age_seconds)} ago`, ...(row.refresh_failures ? [el("small", {}, `${number(row.refresh_failures)} fetches have failed`)] : [])]]);
    for (const row of status.audit) rows.push([["Audit ", el("b", {}, row.sink)],
      row.failing ? word("bad", "fails") : row.dropped ? word("bad", `${number(row.dropped)} lost`) : word("ok", "writes"),
      [`${number(row.written)} written, ${number(row.queued)} wait`, ...(row.spilled || row.failures ? [el("small", {}, `${number(row.spilled)} spilled, ${number(row.failures)} failures`)] : [])]]);
    put("services", table([["What", "", true], ["State", ""], ["More", "", true]], rows, ""));
  };
  const policies = (data, now) => keep("policies", JSON.stringify([data.policies, data.status.policy]), () => {
    const rows = data.policies.map((one, at) => {
      const current = one.outcome !== "refused" && data.status.policy.includes(one.digest) && !data.policies.slice(0, at).some(other => other.digest === one.digest);
      return [[clock(one.time), el("small", {}, `${ago(one.time, now)} ago`)],
        one.outcome === "refused" ? word("bad", "refused") : current ? word("ok", "in force") : el("span", {class: "muted"}, "was in force"),
        one.problems ? el("pre", {}, one.problems.join("\n")) : el("code", {title: one.digest}, `${String(one.digest).slice(0, 19)}…`)];
    });
    return [table([["Time", ""], ["State", "", true], ["Policy", "", true]], rows, "No policy is in force.")];
  });
  const processes = data => {
    const rows = data.processes.map(one => {
      const before = cpu.get(one.process), used = one.cpu_seconds;
      cpu.set(one.process, [used, data.at]);
      const share = before && used !== undefined && data.at > before[1] ? Math.max(0, (used - before[0]) / (data.at - before[1])) : null;
      const state = one.error ? word("bad", "does not answer") : one.draining ? word("warn", "drains") : one.accepting ? word("ok", "accepts") : word("bad", "accepts nothing");
      return [String(one.process), state, number(one.connections), share === null ? "–" : `${(share * 100).toFixed(0)} %`, bytes(one.resident)];
    });
    put("processes", table([["Process", ""], ["State", ""], ["Clients", "number"], ["CPU", "number"], ["Memory", "number"]], rows, "No process answers."),
      el("p", {class: "muted"}, `${number(data.status.requests_in_flight)} requests in flight; ${bytes(data.status.memory_held)} of ${bytes(data.status.memory_limit)} held for clients.`));
  };
  const sections = (data, now) => {
    circuits(data, now);
    put("routes", table([["Route", ""], ["A second", "number"], ["Denied", "number"], ["Failed", "number"], ["p95", "number"]],
      data.routes.map(row => [row.route, number(row.rate), part(row.denied), part(row.failed), seconds(row.p95)]), "No request has ended."));
    put("limits", table([["Limit", ""], ["Who", ""], ["Denied", "number"], ["Last", "number"]], data.limits.slice(0, 20).map(row =>
      [[row.limit, el("small", {}, `${number(row.of)} in ${span(row.window_seconds)}${row.mode === "report" ? ", only observed" : ""}${row.alone ? ", without the store" : ""}`)],
        row.who, number(row.denied), `${ago(row.time, now)} ago`]), "Nobody has used a limit up."),
      ...(data.limits.length > 20 ? [el("p", {class: "muted"}, `and ${data.limits.length - 20} more`)] : []));
    services(data, now);
    policies(data, now);
    processes(data);
    for (const id of ["circuits", "store", "policy", "workers", "traffic"]) {
      const mine = data.concerns.filter(one => ({keys: "store", audit: "store"})[one.section] === id || one.section === id);
      $(id).classList.toggle("bad", mine.some(one => one.severity === "bad"));
      $(id).classList.toggle("warn", mine.length > 0 && mine.every(one => one.severity === "warn"));
    }
  };
  const KINDS = {ready: "ok", degraded: "warn", "not ready": "bad"};
  const headline = (data, lost) => {
    const kind = lost ? "bad" : data.concerns.some(one => one.severity === "bad") ? "bad" : KINDS[data.state];
    const text = lost ? "No word from the gateway" : data.state === "ready" ? "Ready" : data.state === "degraded" ? "Degraded" : "Not ready";
    const wanted = `${SIGNS[kind]} ${text}`;
    if ($("state").textContent !== wanted) put("state", el("span", {class: `word ${kind}`}, wanted));
    document.title = `${wanted}${!lost && data.concerns.length ? ` (${data.concerns.length})` : ""} · mitmgate`;
    document.body.classList.toggle("stale", lost);
    $("live").textContent = lost ? `The last event came ${span((Date.now() - heard) / 1000)} ago; this page goes on trying.` : "";
    if (lost) return;
    const status = data.status, ready = status.workers;
    $("meta").textContent = `mitmgate ${status.version} · up for ${span(status.uptime_seconds)} · ${ready} process${ready === 1 ? "" : "es"} · ${number(status.connections)} clients · ${number(status.requests)} requests so far · ${new Date(data.at * 1000).toLocaleTimeString()}`;
    const key = JSON.stringify(data.concerns);
    if (drawn.get("concerns") !== key) {
      drawn.set("concerns", key);
      const where = {keys: "store", audit: "store", readiness: "workers"};
      put("concerns", ...data.concerns.map(one => el("li", {class: one.severity}, el("strong", {}, `${SIGNS[one.severity]} `, el("a", {href: `#${where[one.section] || one.section}`}, one.what)), one.detail)));
    }
  };

  // The list of denials.
  const matches = row => {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), kind = $("kind").value;
    return (!kind || row.dataset.kind === kind) && words.every(one => row.dataset.text.includes(one));
  };
  const counted = () => {
    const rows = [...$("denial-rows").children], shown = rows.filter(row => !row.hidden).length;
    $("count").textContent = rows.length ? `${shown} of the last ${rows.length}${waiting.length ? `, ${waiting.length} wait` : ""}` : "";
    $("denial-table").hidden = !rows.length;
    $("no-denials").hidden = rows.length > 0;
  };
  const filtered = () => { for (const row of $("denial-rows").children) row.hidden = !matches(row); counted(); };
  const OUTCOMES = {denied: "denied", failed: "failed", observed: "observed only"};
  const line = one => {
    const asked = `${one.host || ""}${one.path || ""}${one.query ? `?${one.query}` : ""}`;
    const who = one.user || one.client || "–";
    const row = el("tr", {}, el("td", {}, clock(one.time)),
      el("td", {}, el("button", {type: "button", class: "link", onclick: event => open(one.id, event.currentTarget)}, `${one.status} ${one.reason}`),
        el("small", {}, `${OUTCOMES[one.outcome] || one.outcome} at ${one.stage}${one.cause ? `, ${one.cause}` : ""}`)),
      el("td", {class: "mono"}, `${one.method} ${asked}`),
      el("td", {}, who, ...(one.user && one.client ? [el("small", {}, `${one.issuer}, ${one.client}`)] : [])),
      el("td", {}, one.route || "–"));
    row.dataset.kind = one.outcome;
    row.dataset.text = [one.status, one.reason, one.stage, one.outcome, one.method, asked, one.user, one.issuer, one.client, one.route, one.cause, one.endpoint, one.request_id].filter(Boolean).join(" ").toLowerCase();
    row.hidden = !matches(row);
    return row;
  };
  const add = rows => {
    const list = $("denial-rows");
    list.prepend(...rows.map(line).reverse());
    while (list.children.length > ROWS) list.lastElementChild.remove();
    counted();
  };
  const denials = (rows, whole) => {
    if (whole) { $("denial-rows").replaceChildren(); waiting = []; }
    if (paused && !whole) { waiting = waiting.concat(rows).slice(-ROWS); counted(); }
    else if (rows.length || whole) add(rows);
  };

  // One of them.
  const shown = value => typeof value === "string" ? value : JSON.stringify(value);
  const facts = pairs => el("dl", {}, ...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) =>
    [el("dt", {}, name), el("dd", {}, ...(Array.isArray(value) ? value : [value]))]));
  const OUTCOME = {admit: "ok", answer: "ok", skip: null, observe: "warn", deny: "bad"};
  const stages = list => el("ol", {class: "stages"}, ...list.map(stage => {
    const decided = ["deny", "answer", "observe"].includes(stage.outcome), kind = OUTCOME[stage.outcome];
    const reads = Object.entries(stage.read || {}), rules = stage.rules || [], change = stage.what_would_have_to_change || [], failing = stage.failing || [];
    const head = el("div", {class: "head"}, kind ? word(kind, stage.outcome) : el("span", {}, stage.outcome), el("b", {}, stage.stage), decided ? el("span", {}, stage.reason) : null,
      el("span", {class: "us"}, stage.us === undefined ? "" : `${stage.us} µs`));
    const lines = rules.length ? [el("div", {}, "Policy lines:"), el("ul", {}, ...rules.map(rule => el("li", {class: "mono"}, `${rule.member}  `, el("span", {class: "muted"}, rule.place), rule.value === undefined ? null : el("div", {}, shown(rule.value)))))] : [];
    const read = reads.length ? [el("div", {}, "What was read:"), facts(reads.map(([name, value]) => [name, el("span", {class: "mono"}, shown(value))]))] : [];
    if (!decided) return el("li", {class: stage.outcome}, lines.length || read.length ? el("details", {}, el("summary", {}, head), ...lines, ...read) : head);
    return el("li", {class: `decided ${stage.outcome}`}, head, stage.detail ? el("div", {}, stage.detail) : null,
      ...failing.map(one => el("div", {}, "Not true: ", el("code", {}, one.predicate), one.error ? ` (${one.error})` : "",
        ...Object.entries(one.values || {}).map(([name, value]) => el("div", {class: "mono muted"}, `${name} = ${shown(value)}`)))),
      change.length ? el("div", {}, "What would have to change:", el("ul", {}, ...change.map(one => el("li", {}, one)))) : null, ...lines, ...read);
  }));
  const notes = list => (list || []).map(one => el("p", {class: "note"}, one));
  const fetched = async (path, options) => {
    const answer = await fetch(path, options);
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.detail || told.title || `status ${answer.status}`);
    return told;
  };
  const open = async (id, from) => {
    opener = from;
    put("detail-title", "…");
    put("detail-body");
    $("detail").showModal();
    try { show(await fetched(`/status/denials/${id}`), id); }
    catch (error) { put("detail-title", "This can't be shown"); put("detail-body", el("p", {}, error.message)); }
  };
  const show = (one, id) => {
    put("detail-title", word(one.outcome === "observed" ? "warn" : "bad", `${one.status} ${one.reason}`), ` ${OUTCOMES[one.outcome] || one.outcome} at ${one.stage}`);
    const result = el("div", {"aria-live": "polite"});
    const method = el("input", {name: "method", value: one.method, autocomplete: "off"}), target = el("input", {name: "target", value: one.target, autocomplete: "off", spellcheck: "false"});
    const fields = el("textarea", {name: "fields", rows: Math.min(12, one.fields.length + 1), spellcheck: "false"}), claims = el("textarea", {name: "claims", rows: 2, spellcheck: "false", placeholder: '{"sub": "alice", "scope": "users.read"}'});
    fields.value = one.fields.map(([name, value]) => `${name}: ${value}`).join("\n");
    const form = el("form", {onsubmit: async event => {
      event.preventDefault();
      result.replaceChildren(el("p", {class: "muted"}, "…"));
      const pairs = fields.value.split("\n").filter(text => text.trim()).map(text => {
        const at = text.indexOf(":", 1);
        return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
      });
      try {
        const told = await fetched(`/status/denials/${id}/explain`, {method: "POST", headers: {"Content-Type": "application/json"},
          body: JSON.stringify({method: method.value, target: target.value, fields: pairs, claims: claims.value})});
        const kind = told.decision === "admit" ? "ok" : told.decision === "not known" ? "warn" : told.decision.startsWith("answer") ? "ok" : "bad";
        result.replaceChildren(el("h3", {}, "The copy: ", word(kind, told.decision === "admit" ? "would be admitted" : told.decision === "not known" ? "not known" : `${told.status} ${told.decision}`)),
          el("p", {class: "mono"}, told.request, told.route ? ` → route ${told.route}` : "", told.upstream && told.upstream.endpoint ? ` → ${told.upstream.endpoint}` : ""),
          ...notes(told.notes), stages(told.stages));
      } catch (error) { result.replaceChildren(el("p", {}, word("bad", error.message))); }
    }}, el("div", {class: "row"}, el("label", {}, "Method", method), el("label", {}, "Target", target)),
      el("label", {}, "Fields, one a line", fields), el("label", {}, "Claims to assume in place of the token (JSON, may be empty)", claims),
      el("button", {type: "submit"}, "Decide on this copy"));
    put("detail-body", facts([["Request", el("span", {class: "mono"}, `${one.method} ${one.target} ${one.version}`)], ["Detail", one.detail], ["Cause", one.cause], ["Failure", one.failure],
      ["User", one.user && `${one.user} (${one.issuer})`], ["Roles", (one.roles || []).join(", ")], ["Scopes", (one.scopes || []).join(" ")], ["Client", one.client === one.peer ? one.client : `${one.client || "not known"}, connected from ${one.peer}`],
      ["Route", one.route], ["Endpoint", one.endpoint], ["Time", [one.time, ` · ${one.ms} ms`]], ["Request id", el("span", {class: "mono"}, one.request_id)], ["Policy", el("span", {class: "mono"}, one.policy)]]),
      ...notes(one.notes), el("h3", {}, "Stage by stage"), stages(one.stages),
      el("h3", {}, "Explain an edited copy"), el("p", {class: "note"}, "Decided by the policy in force, and sent nowhere. Credentials were taken out."), form, result);
  };

  // The stream.
  const source = new EventSource("/status/stream");
  source.onmessage = event => {
    const data = JSON.parse(event.data), whole = data.since === 0;
    heard = Date.now();
    last = data;
    points = (whole ? data.points : points.concat(data.points)).slice(-KEPT);
    headline(data, false);
    denials(data.denials, whole);
    if (document.hidden) return;
    traffic();
    sections(data, data.at);
  };
  setInterval(() => { if (last ? Date.now() - heard > 5000 : Date.now() - started > 5000) headline(last || {concerns: []}, true); }, 1000);
  const started = heard = Date.now();
  $("filter").addEventListener("input", filtered);
  $("kind").addEventListener("change", filtered);
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    $("pause").textContent = paused ? "Go on" : "Pause";
    if (!paused) { add(waiting.splice(0)); }
  });
  $("close").addEventListener("click", () => $("detail").close());
  $("detail").addEventListener("click", event => { if (event.target === $("detail")) $("detail").close(); });
  $("detail").addEventListener("close", () => { if (opener && opener.isConnected) opener.focus(); });
  document.addEventListener("keydown", event => { if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(event.target.tagName)) { event.preventDefault(); $("filter").focus(); } });
  put("state", el("span", {class: "muted"}, "…"));
  $("console").hidden = false;
})();
