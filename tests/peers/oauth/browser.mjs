// Plays a person at a browser: a cookie jar, a reader of forms, and a walk through pages until a given address.
// Runs no script and knows no page by heart: it fills the fields that it has answers for and sends the others back as they stand.

const STEPS_MAX = 15;

export class Jar {
  #cookies = new Map();

  // Takes the cookies of an answer to `url`.
  take(url, headers) {
    const { hostname, pathname } = new URL(url);
    for (const line of headers.getSetCookie()) {
      const [pair, ...rest] = line.split(";").map((part) => part.trim());
      const [name, value] = cut(pair, "=");
      const attributes = Object.fromEntries(rest.map((part) => cut(part, "=")).map(([k, v]) => [k.toLowerCase(), v]));
      const path = attributes.path?.startsWith("/") ? attributes.path : pathname.slice(0, Math.max(1, pathname.lastIndexOf("/")));
      const key = `${hostname} ${path} ${name}`;
      const gone = "max-age" in attributes ? Number(attributes["max-age"]) <= 0 : Date.parse(attributes.expires) <= Date.now();
      if (gone) this.#cookies.delete(key);
      else this.#cookies.set(key, { hostname, path, name, value, attributes });
    }
  }

  // The Cookie header for `url`; longer paths first.
  header(url) {
    const { hostname, pathname } = new URL(url);
    const covers = ({ path }) => pathname === path || pathname.startsWith(path.endsWith("/") ? path : `${path}/`);
    const sent = [...this.#cookies.values()].filter((cookie) => cookie.hostname === hostname && covers(cookie));
    return sent.sort((a, b) => b.path.length - a.path.length).map(({ name, value }) => `${name}=${value}`).join("; ");
  }

  all() {
    return [...this.#cookies.values()];
  }
}

// Every form of a page: {method, action, fields: [{name, value, type}], buttons: [{name, value}]}.
export function forms(html) {
  html = html.replace(/<!--[\s\S]*?-->/g, "");
  return [...html.matchAll(tag("form", "([\\s\\S]*?)</form\\s*>"))].map(([, head, body]) => {
    const form = attributesOf(head);
    const inputs = [...body.matchAll(tag("input"))].map((found) => attributesOf(found[1])).filter((a) => a.name && !("disabled" in a));
    const buttons = [...body.matchAll(tag("button"))].map((found) => attributesOf(found[1])).filter((a) => a.name);
    const presses = (type) => type === "submit" || type === "image";
    const ticked = (a) => !["checkbox", "radio"].includes(a.type) || "checked" in a;
    return {
      method: (form.method ?? "get").toLowerCase(),
      action: form.action ?? "",
      fields: inputs.filter((a) => !presses(a.type) && ticked(a)).map(({ name, value = "", type = "text" }) => ({ name, value, type })),
      buttons: [...buttons, ...inputs.filter((a) => presses(a.type))].map(({ name, value = "" }) => ({ name, value })),
    };
  });
}

// What a person sends with a form: hidden fields as they are, answers for the others, and the button that an answer names.
export function filled(form, answers) {
  const sent = form.fields.map(({ name, value, type }) => [name, type !== "hidden" && name in answers ? answers[name] : value]);
  const pressed = form.buttons.find(({ name, value }) => answers[name] === value);
  return [...sent, ...(pressed ? [[pressed.name, pressed.value]] : [])];
}

export class Browser {
  jar = new Jar();

  constructor(answers = {}) {
    this.answers = answers;
  }

  // One request with the cookies, not following redirects.
  async fetch(url, init = {}) {
    const cookie = this.jar.header(url);
    const headers = { accept: "text/html,application/xhtml+xml", ...(cookie ? { cookie } : {}), ...init.headers };
    const response = await fetch(url, { ...init, headers, redirect: "manual", signal: AbortSignal.timeout(20_000) });
    this.jar.take(url, response.headers);
    return response;
  }

  // Follows redirects and sends forms until an address that starts with `until` (answers that URL), or a page with nothing to
  // fill in (answers {url, status, html, pages}). `pages` are the steps that were shown.
  async visit(url, { until, ...answers } = {}) {
    const pages = [];
    let [current, init, policy] = [String(url), {}, null];
    for (let step = 0; step < STEPS_MAX; step++) {
      const response = await this.fetch(current, init);
      if (response.status >= 300 && response.status < 400) {
        const next = new URL(response.headers.get("location"), current).href;
        mustAllow(policy, next);
        if (until && next.startsWith(until)) return Object.assign(new URL(next), { pages });
        [current, init] = [next, {}];
        continue;
      }
      const html = await response.text();
      if (response.status !== 200) throw new Error(`${init.method ?? "GET"} ${current} answered ${response.status}: ${words(html)}`);
      const form = forms(html).find(({ method }) => method === "post");
      const decided = pages.some(({ decision }) => decision !== undefined);
      if (!form || decided) return { url: current, status: response.status, html, pages };
      const fields = filled(form, { ...this.answers, ...answers });
      const page = Object.fromEntries(fields);
      const name = page.step ?? page.prompt ?? Object.keys(page).join(" ");
      if (pages.some((earlier) => earlier.name === name)) throw new Error(`asked twice for '${name}': ${words(html)}`);
      pages.push({ name, decision: page.decision });
      policy = { from: current, text: response.headers.get("content-security-policy") ?? "" };
      current = new URL(form.action || current, current).href;
      mustAllow(policy, current);
      init = { method: "POST", body: new URLSearchParams(fields), headers: { origin: new URL(current).origin } };
    }
    throw new Error(`no end after ${STEPS_MAX} steps, at ${current}`);
  }
}

// Chromium holds `form-action` against every redirect that follows a form, up to the client's redirect URI.
function mustAllow(policy, target) {
  const directive = policy?.text.split(/[;,]/).map((part) => part.trim()).find((part) => /^form-action(\s|$)/i.test(part));
  if (!directive) return;
  const { origin, protocol, href } = new URL(target);
  const allows = (source) =>
    source === "*" || source === protocol || href === source || origin === source || (source.endsWith("/") && href.startsWith(source)) ||
    (source === "'self'" && origin === new URL(policy.from).origin);
  if (!directive.split(/\s+/).slice(1).some(allows)) throw new Error(`'${directive}' of ${policy.from} keeps a browser from ${origin}`);
}

export function words(html) {
  return html.replace(/<(style|script|head)\b[\s\S]*?<\/\1>/gi, " ").replace(/<[^>]*>/g, " ").replace(/\s+/g, " ").trim().slice(0, 300);
}

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

function unescaped(text) {
  return text.replace(/&(?:#(\d+)|#x([0-9a-f]+)|(\w+));/gi, (whole, decimal, hex, name) =>
    decimal ? String.fromCodePoint(decimal) : hex ? String.fromCodePoint(parseInt(hex, 16)) : (ENTITIES[name.toLowerCase()] ?? whole));
}

function tag(name, rest = "") {
  return new RegExp(`<${name}\\b((?:"[^"]*"|'[^']*'|[^'">])*)>${rest}`, "gi");
}

function attributesOf(text) {
  const found = text.matchAll(/([^\s"'<>/=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'=<>`]+)))?/g);
  return Object.fromEntries([...found].map(([, name, a, b, c]) => [name.toLowerCase(), unescaped(a ?? b ?? c ?? "")]));
}

function cut(text, at) {
  const index = text.indexOf(at);
  return index < 0 ? [text, ""] : [text.slice(0, index), text.slice(index + 1)];
}
