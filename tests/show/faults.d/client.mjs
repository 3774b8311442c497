// npm `ws` as client.py is one, run from the folder whose node_modules holds it.
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { WebSocket } = createRequire(join(process.cwd(), "package.json"))("ws");

const ws = new WebSocket(process.argv[2], { perMessageDeflate: false });
const report = (ended) => {
  console.log(JSON.stringify(ended));
  process.exit(0);
};

ws.on("error", () => {}); // `close` reports it
ws.on("unexpected-response", (_, response) => report({ error: `HTTP ${response.statusCode}` }));
ws.on("open", () => {
  console.log("connected");
  const lines = createInterface({ input: process.stdin });
  lines.on("line", (line) => ws.send(line));
  lines.on("close", () => ws.close(1000));
});
ws.on("message", (data) => console.log(`message ${data.length}`));
ws.addEventListener("close", ({ code, reason, wasClean: clean }) => report({ code, reason, clean }));
