// The console in Chromium against a running server: signs in, watches a task finish live, takes a screenshot.
//
// KEIKO_URL and KEIKO_PASSWORD say where and as whom; SCREENSHOTS is a folder for pictures.
import assert from "node:assert/strict";
import { join } from "node:path";
import { chromium } from "playwright-core";

const { KEIKO_URL: url, KEIKO_PASSWORD: password, SCREENSHOTS: folder } = process.env;
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

async function api(method, path, body, headers) {
  const answer = await fetch(`${url}/api/v1${path}`, {
    method, headers: { "Content-Type": "application/json", ...headers }, body: body && JSON.stringify(body),
  });
  const said = answer.status === 204 ? null : await answer.json();
  assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${JSON.stringify(said)}`);
  return said?.data;
}

const login = await api("POST", "/auth/login", { username: "admin", password });
const admin = { Authorization: `Bearer ${login.attributes.access_token}` };
const capability = `look-${Date.now()}`;
const agent = await api("POST", "/agents", { name: `watcher-${Date.now()}`, capabilities: [{ name: capability }] }, admin);
const key = await api("POST", `/agents/${agent.id}/actions/issue-key`, {}, admin);
const worker = { "X-API-Key": key.attributes.key };

const first = await api("POST", "/tasks", { description: "Wait for nobody", capability }, admin);
const [taken] = await api("POST", "/tasks/actions/claim", { wait_ms: 10000 }, worker);
assert.equal(taken.id, first.id);

const SMALL = "a long enough password";
const small = await api("POST", "/users", { username: `small-${Date.now()}`, password: SMALL, roles: ["user"] }, admin);
const { attributes: theirs } = await api("POST", "/auth/login", { username: small.attributes.username, password: SMALL });
const own = "Their own task";
const never = { capability, delay_ms: 3_600_000 };
await api("POST", "/tasks", { description: own, ...never }, { Authorization: `Bearer ${theirs.access_token}` });

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
try {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) complaints.push(`a request left: ${request.url()}`);
  });

  const field = (name) => page.getByLabel(name, { exact: true });
  const signIn = () => page.getByRole("button", { name: "Sign in" });

  // The console leads to where people sign in, for what was asked for; a wrong password is told.
  await page.goto(`${url}/#/tasks/${first.id}`);
  await page.waitForURL(/\/oauth\/authorize\?.*code_challenge_method=S256/);
  await page.locator("input[name=username]:focus").waitFor();
  await field("User name").fill("admin");
  await field("Password").fill("not the password");
  if (folder) await page.screenshot({ path: join(folder, "sign-in.png") });
  await signIn().click();
  await page.getByRole("alert").waitFor();
  // Chromium itself reports the 400.
  assert.ok(complaints.every((text) => text.includes("400")), complaints.join("\n"));
  complaints.length = 0;

  await field("Password").fill(password);
  await signIn().click();
  await page.getByRole("dialog").getByText(first.attributes.description).waitFor();
  assert.equal(page.url(), `${url}/#/tasks/${first.id}`, "no code stays in the address");
  await page.keyboard.press("Escape");
  await page.getByText("live", { exact: true }).waitFor();
  await page.locator(".fleet", { hasText: agent.attributes.name }).waitFor();

  // A task moves over the board while nobody reloads.
  const description = `Look at ${capability}`;
  const inColumn = (name) => page.locator(`[data-column=${name}]`).getByText(description).first();
  const task = await api("POST", "/tasks", { description, capability, input: { what: "everything" } }, admin);
  await inColumn("pending").waitFor();
  const [claimed] = await api("POST", "/tasks/actions/claim", { wait_ms: 10000 }, worker);
  assert.equal(claimed.id, task.id);
  await inColumn("working").waitFor();
  const claim_token = claimed.attributes.claim.token;
  await api("POST", `/tasks/${task.id}/actions/progress`, { claim_token, percent: 40, message: "half way" }, worker);
  await page.getByText("40 % half way").first().waitFor();
  await page.locator(".fleet .doing", { hasText: description }).waitFor();
  await api("POST", `/tasks/${task.id}/actions/complete`, { claim_token, output: { seen: 42 } }, worker);
  await inColumn("done").waitFor();
  await page.locator(".feed").getByText("tasks.task.completed").first().waitFor();
  if (folder) await page.screenshot({ path: join(folder, "console.png") });

  // What is in it, and why that agent.
  await inColumn("done").click();
  await page.getByRole("dialog").getByText('"seen": 42').waitFor();
  await page.getByRole("dialog").getByText("Why this agent").waitFor();
  if (folder) await page.screenshot({ path: join(folder, "task.png") });
  await page.keyboard.press("Escape");
  await page.waitForURL(/#\/$/);

  // A reload keeps the session; signing out ends it.
  await page.reload();
  await page.getByText("live", { exact: true }).waitFor();
  if (folder) {
    await page.emulateMedia({ colorScheme: "dark" });
    await page.screenshot({ path: join(folder, "console-dark.png") });
    await page.setViewportSize({ width: 390, height: 844 });
    await page.screenshot({ path: join(folder, "console-phone.png") });
  }
  assert.deepEqual(complaints, []);

  // An answer to a login that this tab has not begun is not taken, and takes nothing away.
  for (const foreign of ["?code=kg_stolen&state=other", "?state=signed-out"]) {
    await page.goto(`${url}/${foreign}&iss=${encodeURIComponent(url)}`);
    await page.getByText("live", { exact: true }).waitFor();
    assert.equal(page.url(), `${url}/`);
  }
  assert.deepEqual(await page.evaluate(() => Object.keys(sessionStorage)), [], "an open page keeps its tokens to itself");

  // Signed in at this browser: another tab needs no password. By its other name, this machine is led to where it can sign in.
  const other = await context.newPage();
  let token = "";
  other.on("response", async (answer) => {
    if (answer.url() === `${url}/oauth/token`) token = (await answer.json()).access_token;
  });
  await other.goto(url.replace("127.0.0.1", "localhost"));
  await other.getByText("live", { exact: true }).waitFor();
  assert.ok(other.url().startsWith(`${url}/`));
  const me = () => fetch(`${url}/api/v1/auth/me`, { headers: { Authorization: `Bearer ${token}` } });
  assert.equal((await me()).status, 200);

  // Signing out ends it here, in the other tab and at the server, and asks for the password again.
  assert.deepEqual(complaints, []);
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("You are signed out.").waitFor();
  assert.equal(page.url(), `${url}/`, "nothing stays in the address");
  assert.deepEqual(await page.evaluate(() => Object.keys(sessionStorage)), []);
  if (folder) await page.screenshot({ path: join(folder, "signed-out.png") });
  assert.equal((await me()).status, 401);
  await other.getByText("Your session is over.").waitFor();
  assert.deepEqual(complaints, []);
  await other.close();
  await signIn().click();

  // Somebody who may see little sees that, is told what is missing, and can leave.
  await field("User name").fill(small.attributes.username);
  await field("Password").fill(SMALL);
  await signIn().click();
  await page.getByText(`${small.attributes.username} · default`).waitFor();
  await page.locator(".fleet").getByText("agents.read").waitFor();
  await page.locator(".feed").getByText("events.read").waitFor();
  await page.locator("[data-column=pending]").getByText(own).waitFor();
  if (folder) await page.screenshot({ path: join(folder, "small.png") });
  assert.deepEqual(complaints, [], "nothing is asked for that is refused");
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("You are signed out.").waitFor();
  console.log("console: all steps passed");
} finally {
  await browser.close();
}
