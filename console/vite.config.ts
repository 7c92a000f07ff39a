// One page, hashed asset names, no inline script or style: it runs under a strict content security policy.
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  plugins: [svelte()],
  build: { target: "es2022", assetsInlineLimit: 0, modulePreload: { polyfill: false } },
  // `npx vite` beside a running server.
  server: { host: "127.0.0.1", proxy: { "^/(api|oauth|account|\\.well-known)/": "http://127.0.0.1:8080" } },
});
