// npm `ws` as pod and as client, with or without TLS. Run it in the folder whose node_modules contains `ws`.
//
//   node node.mjs serve              a pod that echoes, closes and reports; with TLS if TLS_CERT and TLS_KEY are set
//   node node.mjs connect URL CA     a client that tests an echoing pod and prints the results as JSON
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { createRequire } from "node:module";
import { join } from "node:path";

const { WebSocket, WebSocketServer } = createRequire(join(process.cwd(), "package.json"))("ws");
const LARGE = 3 << 20;
const PIECES = 24;

function serve() {
  const seen = [];
  const closed = [];
  const { TLS_CERT, TLS_KEY, REPORT } = process.env;
  const sockets = new WebSocketServer({ noServer: true, maxPayload: 0 });
  const answer = (request, response) => {
    if (request.url === "/metric") {
      const report = { agentsConnections: Number(REPORT ?? sockets.clients.size), podName: "ws", seen, closed };
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify(report));
    } else if (request.method === "POST") request.pipe(response);
    else response.end(JSON.stringify(request.headers));
  };
  const offer = { ALPNProtocols: ["h2", "http/1.1"] };
  const tls = { cert: TLS_CERT && readFileSync(TLS_CERT), key: TLS_KEY && readFileSync(TLS_KEY), ...offer };
  const web = TLS_CERT ? https.createServer(tls, answer) : http.createServer(answer);
  web.on("upgrade", (request, socket, head) => {
    const { servername, alpnProtocol } = request.socket;
    seen.push([request.url, servername || null, alpnProtocol || null]);
    const url = new URL(request.url, "http://pod");
    sockets.handleUpgrade(request, socket, head, (client) => {
      client.on("error", () => {});
      client.on("close", (code, reason) => closed.push([code, reason.toString()]));
      if (url.pathname === "/headers") client.send(JSON.stringify(request.headers));
      if (url.pathname === "/close") client.close(Number(url.searchParams.get("code")), url.searchParams.get("reason"));
      else client.on("message", (data, binary) => client.send(data, { binary }));
    });
  });
  web.listen(0, "127.0.0.1", () => console.log(`listening on 127.0.0.1:${web.address().port}`));
}

const digest = (data) => createHash("sha256").update(data).digest("hex");

async function connect(url, file) {
  const socket = new WebSocket(url, { ca: readFileSync(file), perMessageDeflate: false, maxPayload: 0 });
  const messages = [];
  let notify = () => {};
  socket.on("message", (data, binary) => {
    messages.push(binary ? data : data.toString());
    notify();
  });
  const closed = new Promise((resolve) => socket.on("close", (code, reason) => resolve([code, reason.toString()])));
  await new Promise((resolve, reject) => socket.on("open", resolve).on("error", reject));
  const tls = { version: socket._socket.getProtocol?.(), alpn: socket._socket.alpnProtocol, trusted: socket._socket.authorized };
  const received = async (count) => {
    while (messages.length < count) await new Promise((resolve) => (notify = resolve));
  };
  const binary = randomBytes(100_000);
  const large = randomBytes(LARGE);
  socket.send("Grüße 👋");
  socket.send(binary);
  const size = LARGE / PIECES;
  for (let n = 0; n < PIECES; n++) socket.send(large.subarray(n * size, (n + 1) * size), { fin: n === PIECES - 1 });
  await received(3);
  const echoed = messages[0] === "Grüße 👋" && digest(messages[1]) === digest(binary) && digest(messages[2]) === digest(large);
  socket.close(4321, "tschüß");
  console.log(JSON.stringify({ ...tls, echoed, closed: await closed }));
}

const [, , command, ...rest] = process.argv;
await (command === "serve" ? serve() : connect(...rest));
