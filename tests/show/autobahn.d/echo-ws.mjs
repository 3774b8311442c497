// Echo server on npm `ws`, run from the folder whose node_modules holds it.
import { createRequire } from "node:module";
import { join } from "node:path";

const { WebSocketServer } = createRequire(join(process.cwd(), "package.json"))("ws");

// threshold 0: even the smallest message goes back compressed once deflate is negotiated.
const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  maxPayload: 0, // no limit, nor in the next two: 9.3.* sends a message in 65,536 fragments
  maxFragments: 0,
  maxBufferedChunks: 0,
  perMessageDeflate: { threshold: 0 },
});
server.on("listening", () => console.log(`listening on ${server.address().port}`));
server.on("connection", (socket) => {
  socket.on("error", () => {}); // breaking the protocol is what the suite does; `ws` answers it itself
  socket.on("message", (data, binary) => socket.send(data, { binary }));
});
