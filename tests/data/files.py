"""Odd, damaged and hostile image files, made byte by byte where no library writes them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(height=24, width=36, seed=0):
    """Smooth colours and a little noise, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width] / 9
    smooth = 128 + 100 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2)
    return (smooth + np.random.default_rng(seed).normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


def saved(image, kind, **options):
    """An image's or an array's file, as PIL writes it."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation, kind="JPEG", image=None, **options):
    """A picture's file that asks to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(picture() if image is None else image, kind, exif=exif.tobytes(), **options)


def png(width, height, rows, depth=8, colours=2, *, before=(), stream=None):
    """A PNG with right checksums. `rows` holds a filter byte before each row; `stream` stands in for their zlib."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    middle = b"".join(chunk(kind, data) for kind, data in before)
    data = zlib.compress(rows, 9) if stream is None else stream
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep_png(values, colours=2, **options):
    """A PNG of 16 bits from uint16 (H, W, C)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, rows, 16, colours, **options)


def tiff(values, sample_format=1):
    """An uncompressed TIFF of an array (H, W) or (H, W, 3): 1 for unsigned numbers, 2 for signed ones, 3 for floats."""
    height, width, channels = (*values.shape, 1)[:3]
    bits = 8 * values.dtype.itemsize
    data = values.tobytes()
    after = 8 + len(data)  # where lists of three shorts lie
    short, long = 3, 4
    fields = [
        (256, long, 1, width), (257, long, 1, height),
        (258, short, channels, bits if channels == 1 else after), (259, short, 1, 1),
        (262, short, 1, 1 if channels == 1 else 2), (273, long, 1, 8), (277, short, 1, channels),
        (278, long, 1, height), (279, long, 1, len(data)),
        (339, short, channels, sample_format if channels == 1 else after + 6),
    ]  # fmt: skip
    lists = struct.pack("<3H", *[bits] * 3) + struct.pack("<3H", *[sample_format] * 3)
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0" + struct.pack("<I", after + len(lists)) + data + lists + directory + bytes(4)


def bomb(width, height):
    """A PNG of one bit per pixel, all black: megapixels in a kilobyte."""
    row = bytes(1 + -(-width // 8))
    packer = zlib.compressobj(9)
    stream = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png(width, height, b"", 1, 0, stream=stream)


def gallery():
    """Files by name, each with whether it can be read and of which height and width."""
    sound, (height, width) = picture(), picture().shape[:2]
    image = Image.fromarray(sound)
    grey = sound[:, :, 0]
    jpeg, whole_png = saved(sound, "JPEG"), saved(sound, "PNG")
    palette = image.quantize(16)
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(grey))
    rows = b"".join(b"\0" + row.tobytes() for row in sound)
    readable = {
        "plain.jpg": jpeg,
        "progressive.jpg": saved(sound, "JPEG", progressive=True),
        "grey.jpg": saved(grey, "JPEG"),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "turned.jpg": turned(3),
        "corrupt_exif.jpg": saved(sound, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "no_exif.jpg": saved(sound, "JPEG", exif=b"Exif\0\0nothing"),
        "trailing.jpg": jpeg + b"camera's own data",
        "one_bit.jpg": jpeg[:-60] + bytes([jpeg[-60] ^ 0x10]) + jpeg[-59:],
        "two_pictures.jpg": saved(image, "MPO", save_all=True, append_images=[image.rotate(9)]),
        "really_a_png.jpg": whole_png,
        "really_a_jpeg.png": jpeg,
        "plain.png": whole_png,
        "clear.png": saved(clear, "PNG"),
        "grey_clear.png": saved(clear.convert("LA"), "PNG"),
        "palette.png": saved(palette, "PNG"),
        "palette_clear.png": saved(palette, "PNG", transparency=3),
        "palette_clear_bytes.png": saved(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "colour_clear.png": png(width, height, rows, before=[(b"tRNS", struct.pack(">3H", *map(int, sound[0, 0])))]),
        "bits.png": saved(image.convert("1"), "PNG"),
        "deep.png": saved(grey.astype(np.uint16) * 257, "PNG"),
        "deep_colour.png": deep_png(sound.astype(np.uint16) * 257),
        "deep_clear.png": deep_png(np.dstack([sound, grey]).astype(np.uint16) * 257, 6),
        "half_its_rows.png": png(width, height, rows[: len(rows) // 2]),  # otherwise sound: the rest is black
        "text_in_png.png": png(width, height, rows, before=[(b"tEXt", b"Software\0" + bytes(range(1, 256)))]),
        "plain.bmp": saved(sound, "BMP"),
        "plain.gif": saved(palette, "GIF"),
        "clear.gif": saved(palette, "GIF", transparency=2),
        "animated.gif": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(9)]),
        "plain.webp": saved(sound, "WEBP"),
        "clear.webp": saved(clear, "WEBP", lossless=True),
        "animated.webp": saved(image, "WEBP", save_all=True, append_images=[image.rotate(9)]),
        "plain.tif": saved(sound, "TIFF"),
        "pages.tif": saved(sound, "TIFF", save_all=True, append_images=[image.rotate(9)]),
        "lzw.tif": saved(sound, "TIFF", compression="tiff_lzw"),
        "cmyk.tif": saved(image.convert("CMYK"), "TIFF"),
        "lab.tif": saved(image.convert("LAB"), "TIFF"),
        "ycbcr.tif": saved(image.convert("YCbCr"), "TIFF", compression="jpeg"),
        "float.tif": tiff((grey / 255).astype(np.float32), 3),
        "integers.tif": tiff(grey.astype(np.int32) * 257, 2),
        "deep.tif": tiff(grey.astype(np.uint16) * 257),
        "plain.ppm": saved(sound, "PPM"),
        "deep.pgm": f"P5 {width} {height} 4095\n".encode() + (grey.astype(">u2") * 16).tobytes(),
    }
    shapes = {
        "pixel.png": (1, 1), "line.png": (1, 3000), "column.png": (3000, 1), "stripe.jpg": (3, 2000),
        "long.png": (2, 60_000), "tall.bmp": (9000, 2), "small.gif": (1, 2),
    }  # fmt: skip
    unreadable = {
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "letters.png": b"nothing",
        "start.jpg": jpeg[:3],
        "header_zeroed.jpg": jpeg[:3] + bytes(400) + jpeg[403:],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "huge_header.jpg": jpeg.replace(struct.pack(">HH", height, width), b"\xff\xff\xff\xff", 1),
        "cut.png": whole_png[:-20],
        "wrong_checksum.png": whole_png[:60] + bytes([whole_png[60] ^ 1]) + whole_png[61:],
        "broken_stream.png": png(width, height, b"", stream=b"x\x9c" + bytes(range(200))),
        "wrong_filter.png": png(width, height, b"\x09" + rows[1:]),
        "no_pixels.png": png(0, 0, b""),
        "bomb.png": bomb(20_000, 20_000),
        "dark_deep_colour.png": deep_png(sound.astype(np.uint16)),
        "cut.gif": saved(palette, "GIF")[:300],
        "cut.webp": saved(sound, "WEBP")[:150],
        "cut.tif": saved(sound, "TIFF", compression="tiff_lzw")[:200],
        "colour_floats.tif": tiff((sound / 255).astype(np.float32), 3),
        "negative.tif": tiff(grey.astype(np.int32) - 100, 2),
        "infinite.tif": tiff(np.full((9, 9), np.inf, np.float32), 3),
        "not_a_number.tif": tiff(np.full((9, 9), np.nan, np.float32), 3),
        "too_large_numbers.tif": tiff(grey.astype(np.int32) * 70_000, 2),
        "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(loop) {} loop\n",
    }
    files = {name: (content, (height, width)) for name, content in readable.items()}
    for name, size in shapes.items():
        kind = {"jpg": "JPEG"}.get(name.split(".")[1], name.split(".")[1].upper())
        files[name] = saved(picture(*size), kind), size
    return files | {name: (content, None) for name, content in unreadable.items()}
