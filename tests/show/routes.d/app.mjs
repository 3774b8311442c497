// The application of HAProxy's WebSocket tutorial, reimplemented: a page at MOUNT, and a WebSocket at
// MOUNT/echo, where every message goes to all clients of this pod. Without MOUNT it is the other
// service, which answers every path with a text of its own.
//
// Run it in the folder whose node_modules contains express and express-ws.
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const express = require("express");
const { POD_NAME: name, MOUNT: mount } = process.env;

const PAGE = `<!doctype html>
<title>${name}</title>
<p id="pod"></p>
<form><input autofocus autocomplete="off"></form>
<ol></ol>
<script>
  // Relative to this page, so that it also works with a prefix that the pod does not know.
  const path = location.pathname.replace(/\\/$/, "") + "/echo";
  const socket = new WebSocket("ws://" + location.host + path);
  const input = document.querySelector("input");
  const show = (list, text) => list.appendChild(document.createElement("li")).append(text);
  socket.onmessage = ({ data }) => {
    if (document.querySelector("#pod").textContent) show(document.querySelector("ol"), data);
    else document.querySelector("#pod").textContent = data;
  };
  document.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    socket.send(input.value);
    input.value = "";
  };
</script>
`;

/** Returns the request target that the pod received, and the fields about rewritten paths. */
function describeRequest({ originalUrl, headers }) {
  const present = ["x-forwarded-prefix", "x-replaced-path"].filter((field) => field in headers);
  return [originalUrl, ...present.map((field) => `${field}: ${headers[field]}`)].join(", ");
}

const app = express();
if (mount === undefined) {
  app.use((request, response) => {
    response.type("text").send(`${name}: ${request.method} ${request.headers.host}${describeRequest(request)}`);
  });
} else {
  const { getWss } = require("express-ws")(app);
  app.get("/metric", (_, response) => {
    response.json({ agentsConnections: getWss().clients.size, podName: name });
  });
  app.get(mount || "/", (_, response) => {
    response.type("html").send(PAGE);
  });
  app.ws(`${mount}/echo`, (socket, request) => {
    socket.send(`${name} ${describeRequest(request).replace("/.websocket", "")}`);
    socket.on("message", (text) => {
      for (const client of getWss().clients) client.send(text);
    });
  });
}
const server = app.listen(0, "127.0.0.1", () => {
  console.log(`listening on 127.0.0.1:${server.address().port}`);
});
