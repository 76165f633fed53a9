"""Small videos that tests make, and a server that sends them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import Image

RATE = 25
SHADE_STEP = 10  # the grey of a frame is its number times this


def write_clip(path: Path, images: Sequence[np.ndarray], *, turned: int = 0, codec: str = "libx264") -> Path:
    """Write a video of uint8 (h, w, 3) images at 25 frames per second; players turn it by `turned` degrees."""
    height, width = images[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = 5  # what is damaged ends at the next key frame
        if turned:
            stream.set_display_rotation(turned)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def greys(count: int, *, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames that show their number: uint8 (48, 64, 3), each with a grey of `SHADE_STEP` times its number."""
    return [np.full((height, width, 3), SHADE_STEP * number, np.uint8) for number in range(count)]


def number_of(image: np.ndarray) -> int:
    """The number of a frame of `greys`."""
    return round(float(image.mean()) / SHADE_STEP)


def as_jpeg(image: np.ndarray) -> bytes:
    """The image as a JPEG file."""
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


@contextmanager
def served(folder: Path, parts: Sequence[bytes] = (), *, breaks: bool = False) -> Iterator[str]:
    """A server on this machine: the files of `folder`, and at /live the JPEGs `parts`, then silence if it `breaks`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("/live"):
                file = folder / self.path[1:].partition("?")[0]
                if not file.is_file():
                    self.send_error(404)
                    return
                content = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            for part in parts:
                self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n")
                self.wfile.write(b"Content-Length: %d\r\n\r\n%b\r\n" % (len(part), part))
            self.wfile.flush()
            if breaks:
                quiet.wait(30)

        def log_message(self, *_: object) -> None:
            """Nothing: standard error belongs to the command."""

    quiet = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        quiet.set()
        server.shutdown()
        thread.join()
        server.server_close()
