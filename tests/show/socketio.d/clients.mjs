// Clients of Socket.IO 4: node clients.mjs URL OPTIONS. Run it in the folder with the packages.
//
// OPTIONS is JSON:
//   polling    number of clients that send `talks` messages by polling and upgrade when they are allowed to
//   websocket  number of clients that never poll
//   talks      number of messages that each client sends after it has connected
//   shared     whether polling requests share keep-alive connections; else each has a new connection
//   once       whether clients do not reconnect
//
// They are controlled by HTTP:
//   GET  /state/FROM/TO  the state of each client, with missing and repeated broadcasts of this range
//   POST /upgrade        allows polling clients to upgrade after they have sent their messages
import http from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const { io } = require("socket.io-client");
const { NodeWebSocket, NodeXHR, Socket: Engine } = require("engine.io-client");

const [, , url, given] = process.argv;
const options = JSON.parse(given);
const errors = {};

/** Returns a transport that counts each of its errors. */
const countErrors = (Transport) => class extends Transport {
  onError(reason, description, context) {
    const why = context?.responseText || description?.message || description;
    const what = `${this.name}: ${why}`;
    errors[what] = (errors[what] ?? 0) + 1;
    return super.onError(reason, description, context);
  }
};

class Polling extends countErrors(NodeXHR) {}

/** A WebSocket transport that stores the cookies of the 101, as browsers do. */
class WebSocketOnly extends countErrors(NodeWebSocket) {
  createSocket(...all) {
    const ws = super.createSocket(...all);
    ws.on("upgrade", (response) => this.socket._cookieJar.parseCookies(response.headers["set-cookie"]));
    return ws;
  }
}

/** A WebSocket transport that opens after its client has sent its messages by polling. */
class WebSocketLater extends WebSocketOnly {
  doOpen() {
    this.socket.once("talked", () => super.doOpen());
  }
}

// A browser keeps its cookies when it reconnects; engine.io-client would start without cookies.
Object.defineProperty(Engine.prototype, "_cookieJar", {
  get() { return this.opts.cookies.jar; },
  set(jar) { this.opts.cookies.jar ??= jar; },
});

/** An agent with keep-alive that counts connections with requests of more than one client. */
class Agent extends http.Agent {
  users = new Map();

  reuseSocket(socket, request) {
    const client = new URL(request.path, url).searchParams.get("client");
    this.users.set(socket, (this.users.get(socket) ?? new Set()).add(client));
    super.reuseSocket(socket, request);
  }

  mixed() {
    return [...this.users.values()].filter((clients) => clients.size > 1).length;
  }
}

const agent = options.shared ? new Agent({ keepAlive: true }) : false;
let upgrade;
const mayUpgrade = new Promise((resolve) => (upgrade = resolve));

class Client {
  constructor(number, kind) {
    this.kind = kind;
    this.cookies = {};
    this.got = new Map();
    this.by = { polling: 0, websocket: 0 };
    this.connects = 0;
    this.over = false;
    this.socket = io(url, {
      transports: kind === "polling" ? [Polling, WebSocketLater] : [WebSocketOnly],
      query: { client: `${kind}-${number}` },
      agent,
      transportOptions: { websocket: { agent: false } },
      forceNew: true,
      withCredentials: true,
      cookies: this.cookies,
      reconnection: !options.once,
    });
    this.socket.on("connect", () => this.talk().catch(() => {}));
    this.socket.on("broadcast", (number) => {
      this.got.set(number, (this.got.get(number) ?? 0) + 1);
      this.by[this.transport()]++;
    });
    for (const event of ["close", "error"]) this.socket.io.on(event, () => (this.over = true));
  }

  transport() {
    return this.socket.io.engine.transport.name;
  }

  async talk() {
    this.connects++;
    this.talked = false;
    const engine = this.socket.io.engine;
    for (let n = 0; n < options.talks; n++) this.pod = await this.socket.emitWithAck("talk");
    this.talked = true;
    await mayUpgrade;
    engine.emit("talked");
  }

  state(from, to) {
    const missing = [];
    const repeated = [];
    for (let number = from; number <= to; number++) {
      const times = this.got.get(number) ?? 0;
      if (times === 0) missing.push(number);
      if (times > 1) repeated.push(number);
    }
    const up = this.socket.connected && this.talked;
    return {
      kind: this.kind,
      transport: up ? this.transport() : null,
      pod: up ? this.pod : null,
      cookie: this.cookies.jar?._cookies.get("wsbalancer")?.value ?? null,
      connects: this.connects,
      over: this.over,
      by: this.by,
      missing,
      repeated,
    };
  }
}

const clients = [];
for (const kind of ["polling", "websocket"]) {
  for (let n = 0; n < options[kind]; n++) clients.push(new Client(n, kind));
}

const web = http.createServer((request, response) => {
  const [, what, from, to] = request.url.split("/");
  if (what === "upgrade") upgrade();
  const state = clients.map((client) => client.state(Number(from), Number(to)));
  response.end(JSON.stringify({ clients: state, errors, mixed: agent ? agent.mixed() : 0 }));
});
web.listen(0, "127.0.0.1", () => console.log(`listening on 127.0.0.1:${web.address().port}`));
