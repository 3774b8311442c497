// npm `ws` as server and as client. Run it in the folder whose node_modules contains `ws`.
//
//   node node.mjs serve                      behaves by path; GET /seen?id=… returns the server's record
//   node node.mjs connect CASES BASE SERVER  runs the cases of a file on BASE, prints a record for each;
//                                            SERVER is asked for the server's record
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

const { WebSocket, WebSocketServer } = createRequire(join(process.cwd(), "package.json"))("ws");

const FORWARDED = ["x-forwarded-.*", "forwarded", "x-real-ip", "x-request-id"];
const HOP_BY_HOP = ["host", "connection", "keep-alive", "upgrade", "date", "sec-websocket-(key|accept)"];
const ONE_HOP = new RegExp(`^(${[...FORWARDED, ...HOP_BY_HOP].join("|")})$`);
const DEADLINE = 15_000;

/** Header fields that must be the same on both sides of a proxy, repeated ones in their order. */
function comparableFields(raw) {
  const fields = [];
  for (let i = 0; i < raw.length; i += 2) fields.push([raw[i].toLowerCase(), raw[i + 1]]);
  return fields.filter(([name]) => !ONE_HOP.test(name)).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

/** Returns a short text for a message. */
function digest(data, binary) {
  const text = data.toString();
  if (!binary && text.length < 80) return text;
  return `${binary ? "binary" : "text"} ${data.length} ${createHash("sha256").update(data).digest("hex").slice(0, 16)}`;
}

function serve() {
  const records = new Map();
  const common = { noServer: true, maxPayload: 0, allowSynchronousEvents: true };
  common.handleProtocols = (offered, request) => {
    const chosen = new URL(request.url, "http://pod").searchParams.get("select");
    return chosen && offered.has(chosen) ? chosen : false;
  };
  const compressing = new WebSocketServer({ ...common, perMessageDeflate: { threshold: 0 } });
  const plain = new WebSocketServer({ ...common, perMessageDeflate: false });
  for (const server of [compressing, plain]) {
    server.on("headers", (lines, request) => {
      if (request.url.startsWith("/headers")) {
        lines.push("Set-Cookie: a=1; Path=/", "Set-Cookie: b=2; HttpOnly", "X-Pod: one, two", "Server: pods/1.0");
      }
    });
  }
  const web = http.createServer((request, response) => {
    const record = records.get(new URL(request.url, "http://pod").searchParams.get("id"));
    response.end(JSON.stringify(record ?? {}));
  });
  web.on("upgrade", (request, socket, head) => {
    const url = new URL(request.url, "http://pod");
    const query = url.searchParams;
    const id = query.get("id");
    const record = records.get(id) ?? { requests: [], messages: [], pongs: [] };
    records.set(id, record);
    record.requests.push([request.url, comparableFields(request.rawHeaders)]);
    socket.on("error", () => {});
    if (url.pathname === "/redirect" || url.pathname === "/refuse") {
      const body = `pod says ${query.get("status")}\n`;
      const fields = url.pathname === "/redirect"
        ? [`Location: ${query.get("to")}`]
        : ['WWW-Authenticate: Basic realm="pods"', 'WWW-Authenticate: Bearer', "X-Why: because"];
      socket.end([`HTTP/1.1 ${query.get("status")} Reason`, ...fields, "Connection: close", "Content-Type: text/plain",
        `Content-Length: ${body.length}`, "", body].join("\r\n"));
      return;
    }
    if (url.pathname === "/think") {
      record.state = "thinking";
      for (const event of ["end", "close"]) socket.on(event, () => (record.state = "disconnected"));
      socket.resume();
      return;
    }
    // Corked until the first frames are written, so that the 101 and the frames are sent together.
    socket.cork();
    (query.get("deflate") === "off" ? plain : compressing).handleUpgrade(request, socket, head, (ws) => {
      record.chosen = [ws.protocol, ws.extensions];
      ws.on("error", (error) => (record.error = error.message));
      ws.on("ping", (data) => (record.pinged = data.toString()));
      ws.on("pong", (data) => record.pongs.push(data.toString()));
      ws.on("close", (code, reason) => (record.closed = [code, reason.toString()]));
      ws.on("message", (data, binary) => {
        record.messages.push(digest(data, binary));
        ws.send(data, { binary });
      });
      if (url.pathname === "/greet") for (const text of ["one", "two", "x".repeat(1000)]) ws.send(text);
      if (url.pathname === "/close") {
        if (query.has("code")) ws.close(Number(query.get("code")), query.get("reason") ?? "");
        else ws.close();
      }
      if (url.pathname === "/ping") ws.ping("from the pod");
      if (url.pathname === "/fragments") {
        for (const [n, part] of ["Grüße, ", "", "in drei ", "Stücken"].entries()) ws.send(part, { fin: n === 3 });
      }
    });
    socket.uncork();
  });
  web.listen(0, "127.0.0.1", () => console.log(`listening on 127.0.0.1:${web.address().port}`));
}

async function record(server, id, ready) {
  for (const end = Date.now() + 5_000; ; await pause(10)) {
    const seen = await (await fetch(`http://${server}/seen?id=${id}`)).json();
    if (ready(seen) || Date.now() > end) return seen;
  }
}

/** Runs one case. Returns the client's record, with the server's record in it. */
async function play(testCase, base, server, id) {
  const outcome = { received: [] };
  const deflate = testCase.deflate && {
    threshold: 0,
    serverNoContextTakeover: testCase.deflate.server_no_context_takeover,
    clientNoContextTakeover: testCase.deflate.client_no_context_takeover,
    serverMaxWindowBits: testCase.deflate.server_max_window_bits,
    clientMaxWindowBits: testCase.deflate.client_max_window_bits,
  };
  const headers = {};
  for (const [name, value] of testCase.headers ?? []) (headers[name] ??= []).push(value);
  for (const name in headers) if (headers[name].length === 1) headers[name] = headers[name][0];
  const options = { perMessageDeflate: deflate ?? false, headers, followRedirects: testCase.follow ?? false };
  const ws = new WebSocket(`ws://${base}${testCase.path.replaceAll("ID", id)}`, testCase.protocols ?? [], options);
  ws.on("error", (error) => (outcome.error ??= error.message));
  ws.on("upgrade", (response) => (outcome.headers = comparableFields(response.rawHeaders)));
  ws.on("redirect", (url) => (outcome.redirected = (outcome.redirected ?? 0) + 1));
  const finished = new Promise((resolve) => {
    ws.on("close", (code, reason) => {
      outcome.closed ??= [code, reason.toString()];
      resolve();
    });
    ws.on("unexpected-response", async (_, response) => {
      outcome.status = response.statusCode;
      outcome.headers = comparableFields(response.rawHeaders);
      outcome.body = "";
      for await (const piece of response) outcome.body += piece;
      resolve();
    });
  });
  ws.on("open", () => {
    outcome.chosen = [ws.protocol, ws.extensions];
    for (const parts of testCase.send ?? []) {
      if (typeof parts === "string") ws.send(parts);
      else if (typeof parts === "number") ws.send(Buffer.alloc(parts, "0123456789abcdef"));
      else parts.forEach((part, n) => ws.send(part, { fin: n === parts.length - 1 }));
    }
    if (testCase.ping) ws.ping(testCase.ping);
    done();
  });
  let remaining = testCase.receive ?? (testCase.send ?? []).length;
  const done = () => {
    if (remaining > 0 || testCase.path.startsWith("/close")) return;
    if (testCase.close === null) ws.close();
    else ws.close(...(testCase.close ?? [1000, ""]));
  };
  ws.on("message", (data, binary) => {
    outcome.received.push(digest(data, binary));
    remaining--;
    done();
  });
  for (const event of ["ping", "pong"]) {
    ws.on(event, (data) => {
      outcome[event] = data.toString();
      // The library sends its own pong after this event.
      setImmediate(() => { remaining--; done(); });
    });
  }
  if (testCase.abort) {
    await record(server, id, (seen) => seen.state === "thinking");
    ws.terminate();
    const seen = await record(server, id, (seen) => seen.state === "disconnected");
    return { state: seen.state };
  }
  await Promise.race([finished, pause(DEADLINE).then(() => { outcome.error = "timed out"; ws.terminate(); })]);
  // A client may have failed a session that its server considers open.
  outcome.server = await record(server, id, (seen) => seen.closed || !(outcome.chosen || seen.chosen));
  return outcome;
}

async function connect(file, base, server) {
  for (const [number, testCase] of JSON.parse(readFileSync(file)).entries()) {
    const id = `id${process.pid}n${number}e`;
    const outcome = JSON.stringify(await play(testCase, base, server, id)).replaceAll(id, "ID");
    console.log(`OUTCOME ${outcome}`);
  }
  process.exit(0);
}

const [, , mode, ...rest] = process.argv;
if (mode === "serve") serve();
else await connect(...rest);
