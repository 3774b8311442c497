// A pod with Socket.IO 4: node pod.mjs. Run it in the folder whose node_modules contains the packages.
//
// POD_NAME is its name. REDIS is the socket of the Redis server that forwards broadcasts between pods;
// without it, broadcasts stay on the pod. The pod prints a line of JSON for each event.
//
//   GET  /metric        {"agentsConnections": n, "podName": ...}
//   GET  /peers         the number of pods that are connected by Redis
//   POST /broadcast/N   sends N to every client
import http from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const { Server } = require("socket.io");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");

const name = process.env.POD_NAME;
const path = process.env.REDIS;

/** Prints an event at once, so that nothing is missing when the pod is killed. */
const printEvent = (event, facts) => console.log(JSON.stringify({ event, ...facts }));

async function adapter() {
  const clients = [createClient({ socket: { path } }), createClient({ socket: { path } })];
  for (const client of clients) client.on("error", (error) => printEvent("redis", { message: error.message }));
  await Promise.all(clients.map((client) => client.connect()));
  return createAdapter(...clients);
}

const web = http.createServer(async (request, response) => {
  const [, what, number] = request.url.split("/");
  let answer = { agentsConnections: io.engine.clientsCount, podName: name };
  if (what === "peers") answer = await io.of("/").adapter.serverCount();
  if (what === "broadcast") answer = io.emit("broadcast", Number(number));
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify(answer));
});
const io = new Server(web, path ? { adapter: await adapter() } : {});

// For each client, the number of its polling requests by the replica that forwarded them.
const requests = new Map();
io.engine.use((request, _, next) => {
  const query = new URL(request.url, "http://pod").searchParams;
  if (query.get("transport") === "polling") {
    const client = query.get("client");
    const replica = request.headers["x-replica"] ?? "";
    if (!requests.has(client)) requests.set(client, {});
    requests.get(client)[replica] = (requests.get(client)[replica] ?? 0) + 1;
  }
  next();
});

io.engine.on("connection_error", ({ code, message }) => printEvent("refused", { code, message }));

io.on("connection", (socket) => {
  const { client } = socket.handshake.query;
  const transport = () => socket.conn.transport.name;
  const talked = { polling: 0, websocket: 0 };
  printEvent("connected", { client, transport: transport() });
  socket.conn.on("upgrade", () => {
    printEvent("upgraded", { client, transport: transport(), talked: talked.polling, requests: requests.get(client) });
    requests.delete(client);
  });
  socket.on("talk", (answer) => {
    talked[transport()]++;
    answer(name);
  });
});

web.listen(0, "127.0.0.1", () => console.log(`listening on 127.0.0.1:${web.address().port}`));
