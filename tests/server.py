"A local server whose manners can be set: one that hangs up, ignores ranges, sends something else, or is slow."
import http.server, threading
import numpy as np

BYTES = np.random.default_rng(0).bytes(3 << 20)


class Server:
    """Its manners: `cut` bytes per answer, after which the line is closed or, with `held`, silent till `go_on` is set;
    `ranges`, `tag`, `body`, `code`. It remembers what it was `asked`."""
    def __init__(self):
        self.body, self.cut, self.ranges, self.tag, self.code = BYTES, None, True, '"1"', None
        self.asked, self.odd_part, self.length = [], False, True
        self.held, self.go_on = False, threading.Event()
        me = self
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                wish = self.headers.get('Range')
                me.asked.append((wish, self.headers.get('If-Range')))
                if me.code:
                    self.send_response(me.code)
                    return self.end_headers()
                start = int(wish[6:-1]) if wish and me.ranges and self.headers.get('If-Range') in (None, me.tag) else 0
                if start >= len(me.body) and start:
                    self.send_response(416)
                    self.send_header('Content-Range', f'bytes */{len(me.body)}')
                    return self.end_headers()
                if me.odd_part and start: start -= 7
                self.send_response(206 if start else 200)
                if start: self.send_header('Content-Range', f'bytes {start}-{len(me.body) - 1}/{len(me.body)}')
                if me.length: self.send_header('Content-Length', str(len(me.body) - start))
                if me.tag: self.send_header('ETag', me.tag)
                self.end_headers()
                end = start + me.cut if me.cut else len(me.body)
                self.wfile.write(me.body[start:end])
                if me.held:
                    me.go_on.wait(20)
                    self.wfile.write(me.body[end:])
            def log_message(self, *args): pass
        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.http.server_port}/file'
    def ranges_asked(self): return [r for r, _ in self.asked]
    def close(self):
        self.go_on.set()
        self.http.shutdown()
        self.http.server_close()
