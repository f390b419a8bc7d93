import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// The pages are served at /console by the proxy, and committed: nobody needs node to run them.
export default defineConfig({
  base: "/console/",
  plugins: [svelte()],
  resolve: { conditions: ["source", "browser", "module"] },
  build: {
    outDir: "bundle",
    rolldownOptions: { input: { console: "index.html", reference: "reference/index.html" } },
    target: "es2022",
    license: { fileName: "licenses.md" },
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0, // the policy of the pages allows no data: URLs
  },
  server: {
    // For who works on the pages: `npm run dev`, beside a running `creditledger up`.
    proxy: { "/credit.v1": "http://127.0.0.1:8080" },
  },
});
