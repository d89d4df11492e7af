// A stock Node origin: its own http server reads what the gateway sends, and writes one line of JSON for each event.
//
//   node origin.mjs LOG
//
// Prints its port. Events: `request` (a head was read), `end` (what became of it), `broken` (bytes that are no request),
// `fence` (every byte that came before it has been read). What it answers is asked for in the query:
// status=N, size=N, chunked, trailer, early (before the body is read), hints (a 103 first), close (Connection: close),
// cut (hangs up within the response), slow (a turn of 20 ms first).
import { createHash } from "node:crypto";
import { openSync, writeSync } from "node:fs";
import { createServer } from "node:http";

const log = openSync(process.argv[2], "a");
const write = (event) => writeSync(log, JSON.stringify(event) + "\n");
const sockets = new WeakMap(); // its number, and how many of its requests have not been read to their end
const refused = new WeakSet();
let connections = 0;
let requests = 0;

function begun(request) {
  const number = ++requests;
  const socket = sockets.get(request.socket);
  socket.reading += 1;
  const hash = createHash("sha256");
  let length = 0;
  request.on("data", (part) => {
    hash.update(part);
    length += part.length;
  });
  request.on("end", () => (socket.reading -= 1));
  write({
    event: "request",
    number,
    connection: socket.number,
    method: request.method,
    url: request.url,
    version: request.httpVersion,
    headers: request.rawHeaders,
  });
  const ended = (answered) => {
    const { complete, rawTrailers: trailers } = request;
    write({ event: "end", number, complete, answered, length, sha256: hash.copy().digest("hex"), trailers });
  };
  return { number, ended };
}

function fence(request, response) {
  // Two more turns of the loop read what lies ready on the other connections.
  setImmediate(() => setImmediate(() => setImmediate(() => {
    write({ event: "fence", name: request.url.slice("/fence/".length) });
    response.end();
  })));
}

function answer(request, response, asked) {
  const status = { 204: 204, 304: 304, 500: 500 }[asked.get("status")] ?? 200;
  const size = Number(asked.get("size") ?? 0) || 0; // a query may have been mutated on its way here
  const body = size > 0 && size < 1e7 ? Buffer.alloc(size, "x") : Buffer.from(request.url);
  response.setHeader("X-Origin-Saw", request.headers["x-request-id"] ?? "");
  response.setHeader("X-Origin-User", request.headers["x-user-id"] ?? "");
  if (asked.has("close")) response.setHeader("Connection", "close");
  if (asked.has("hints")) response.writeEarlyHints({ link: "</style.css>; rel=preload" });
  if (!asked.has("chunked") && !asked.has("trailer") && status !== 204 && status !== 304) response.setHeader("Content-Length", body.length);
  const trailer = asked.has("trailer") && request.method !== "HEAD";
  if (trailer) response.setHeader("Trailer", "X-Sum");
  response.writeHead(status);
  if (asked.has("cut")) {
    response.write(body.subarray(0, body.length / 2), () => request.socket.destroy());
    return;
  }
  if (trailer) response.addTrailers({ "X-Sum": "1" });
  response.end(request.method === "HEAD" || status === 204 || status === 304 ? undefined : body);
}

const server = createServer((request, response) => {
  if (request.url.startsWith("/fence/")) return fence(request, response);
  const asked = new URLSearchParams(request.url.split("?")[1] ?? "");
  const record = begun(request);
  response.on("close", () => record.ended(response.writableFinished));
  const respond = () => (asked.has("slow") ? setTimeout(answer, 20, request, response, asked) : answer(request, response, asked));
  // As services do: what asks for nothing but an answer gets it at once, whether or not a body follows.
  if (asked.has("early") || ["GET", "HEAD", "DELETE", "OPTIONS"].includes(request.method)) respond();
  else request.on("end", respond);
});

server.on("connection", (socket) => sockets.set(socket, { number: ++connections, reading: 0 }));

server.on("clientError", (error, socket) => {
  // An error of the socket is none of the parser, a body that was cut is no request (its `end` says so), and what still
  // comes after an error is not read any more, as without this listener.
  const cut = error.code === "HPE_INVALID_EOF_STATE" && (sockets.get(socket)?.reading ?? 0) > 0;
  if (error.code?.startsWith("HPE_") && !cut && !refused.has(socket)) {
    const bytes = error.rawPacket?.toString("latin1") ?? "";
    write({ event: "broken", code: error.code, bytes, parsed: error.bytesParsed ?? 0 });
  }
  refused.add(socket);
  if (socket.writable) socket.write("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
  socket.destroySoon();
});

// A WebSocket: what the client's frames hold, unmasked, comes back as text messages of the same size.
server.on("upgrade", (request, socket, head) => {
  const record = begun(request);
  const accept = createHash("sha1")
    .update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
    .digest("base64");
  socket.write(
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
      `Sec-WebSocket-Accept: ${accept}\r\nX-Origin-Saw: ${request.headers["x-request-id"]}\r\n\r\n`,
  );
  let held = head;
  const take = (data) => {
    held = Buffer.concat([held, data]);
    for (;;) {
      if (held.length < 2) return;
      const opcode = held[0] & 15;
      let size = held[1] & 127;
      let at = 2;
      if (size === 126) [size, at] = [held.length < 4 ? Infinity : held.readUInt16BE(2), 4];
      else if (size === 127) [size, at] = [held.length < 10 ? Infinity : Number(held.readBigUInt64BE(2)), 10];
      if (held.length < at + 4 + size) return;
      const mask = held.subarray(at, at + 4);
      const payload = Buffer.from(held.subarray(at + 4, at + 4 + size).map((octet, index) => octet ^ mask[index & 3]));
      held = held.subarray(at + 4 + size);
      write({ event: "message", number: record.number, opcode, length: size, text: payload.toString("latin1", 0, 200) });
      if (opcode === 8) socket.end(Buffer.concat([Buffer.from([0x88, payload.length]), payload]));
      else if (opcode === 9) socket.write(Buffer.concat([Buffer.from([0x8a, payload.length]), payload]));
      else if (size < 126) socket.write(Buffer.concat([Buffer.from([0x80 | opcode, size]), payload]));
    }
  };
  socket.on("data", take);
  socket.on("error", () => {});
  socket.on("close", () => record.ended(true));
  take(Buffer.alloc(0));
});

server.listen(0, "127.0.0.1", () => console.log(server.address().port));
