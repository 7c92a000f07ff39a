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

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
try {
  const page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
  const complaints = [];
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) complaints.push(`a request left: ${request.url()}`);
  });

  // A wrong password is told.
  await page.goto(url);
  await page.getByLabel("Name").fill("admin");
  await page.getByLabel("Password").fill("not the password");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").waitFor();
  // Chromium itself reports the 401.
  assert.ok(complaints.every((text) => text.includes("401")), complaints.join("\n"));
  complaints.length = 0;

  await page.getByLabel("Password").fill(password);
  await page.getByRole("button", { name: "Sign in" }).click();
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
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByRole("button", { name: "Sign in" }).waitFor();
  await page.reload();
  await page.getByRole("button", { name: "Sign in" }).waitFor();
  console.log("console: all steps passed");
} finally {
  await browser.close();
}
