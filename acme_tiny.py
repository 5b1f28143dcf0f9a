#!/usr/bin/python3 -IS
"""A tiny ACME client (RFC 8555): certificates from Let's Encrypt and its like by http-01.

It needs Python's standard library and the openssl program. What it touches: it reads the account
key and the CSR, writes and removes files in the challenge folder, and talks https to the CA. It
is the protocol half of letsencrypt-tiny, and a script and module of its own, with the command
line and the get_crt() of acme-tiny 5.0.3:

  acme_tiny.py --account-key account.key --csr domain.csr --acme-dir /srv/acme-challenge > crt

API: get_crt(), main(), AcmeError, ToolError, LOGGER. All else may change.
"""
import base64, itertools, json, os, re, sys, time
from collections import namedtuple
from datetime import datetime, timezone

__version__ = "1.0"
DEFAULT_DIRECTORY_URL = "https://acme-v02.api.letsencrypt.org/directory"

REQUEST_SECONDS = 30  # for a whole request: connection, answer, and tries with another nonce
POLL_SECONDS = 90     # for each of: validation, issuance
CHECK_SECONDS = 10    # for all self-checks together, but one second for each
ANSWER_BYTES = 1000000
NONCES = 10           # tries of a request without a pause, each with a fresh nonce
UNBOUND = ("this CA takes only accounts that are bound to one that it knows: set eab-kid and "
           "eab-hmac-key to what it gave you for that")

# ---- Errors -------------------------------------------------------------------------------------
# Touches nothing.


class AcmeError(ValueError):
    """The CA refused, or did not answer as RFC 8555 says. Its text is safe to print.

    status: of the HTTP answer that refused, 0 if no answer could be used, or None; type: the
    problem's, without its URN prefix; retry_after: seconds the CA asked us to stay away (429 and
    503 only), or None.
    """

    def __init__(self, text: str, status: int = None, type: str = "", retry_after: int = None):
        super().__init__(printable(text, 10000))
        self.status, self.type, self.retry_after = status, type, retry_after


class OrderFailed(AcmeError):
    """An order will never give a certificate that can be used."""


class ToolError(IOError):
    """The openssl program or a file failed; the text holds its own words. output: what the program
    printed before."""

    def __init__(self, text: str, output: bytes = b""):
        super().__init__(text)
        self.output = output


# ---- Doors --------------------------------------------------------------------------------------
# The only place that starts another program, and the only way for text from outside to a terminal.


def openssl(*args: str, stdin: bytes = b"", seconds: float = 600) -> bytes:
    """Run openssl with these arguments and stdin (None: ours); its stdout.

    Raises ToolError with its own words, or if it takes more seconds than given. Keys are named by
    path only; a key with a passphrase fails, as there is no terminal to ask at.
    """
    import subprocess
    try:
        done = subprocess.run(("openssl", *args), input=stdin, capture_output=True, timeout=seconds,
                              start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"openssl {args[0]} failed: {error}")
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")
        # OpenSSL 3 begins each with the number of its thread, which is another one each time
        words = re.sub(r"(^|; )[0-9A-F]+:(?=error:)", r"\1", words)
        words = re.sub(r"errno=([0-9]+)", lambda match: os.strerror(int(match[1])), words)
        raise ToolError(f"openssl {args[0]} failed (status {done.returncode}): {printable(words)}",
                        done.stdout)
    return done.stdout


def printable(text, limit: int = 500) -> str:
    """text (of any type) from outside, fit for a terminal: control characters, bidi controls and
    surrogates escaped, cut after so many characters, but not within a URL, of use only as a
    whole."""
    text = str(text)
    urls = [url.end() for url in re.finditer(r"https?://[!-~]{1,4000}", text)
            if url.start() < limit < url.end()]
    end = max([limit, *urls])
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:end])[:end]
    return shown if len(text) <= end else shown + (" ..." if urls else "...")


def utc(seconds: float, form: str = "%Y-%m-%d %H:%M UTC") -> str:
    """Seconds since 1970 as a text such as 2026-11-23 06:32 UTC, or of another form; what lies
    outside of the years 1 to 9999 as the first or last minute of them."""
    known = max(-62135596800, min(seconds, 253402300799))
    return time.strftime(form, time.gmtime(known))


# ---- DER, PEM, keys, certificates ---------------------------------------------------------------
# Reads the bytes it is given; openssl sees only keys in rare formats, and signs requests.


def der(data: bytes) -> list:
    """The DER items (X.690) in data as [(tag, body)]. Raises ValueError."""
    items, start = [], 0
    while start < len(data):
        tag, size = data[start:start + 2]
        start += 2
        if size >= 0x80:
            count = size - 0x80
            size, start = int.from_bytes(data[start:start + count], "big"), start + count
        items.append((tag, data[start:start + size]))
        start += size
    if start != len(data):
        raise ValueError("its DER is cut short")
    return items


def inside(data: bytes) -> list:
    """The DER items within the one item that data is, as der(). Raises ValueError."""
    (_, body), = der(data)
    return der(body)


def tlv(tag: int, *parts: bytes) -> bytes:
    """One DER item of the tag and the joined parts."""
    body = b"".join(parts)
    size = len(body).to_bytes(4, "big").lstrip(b"\0") or b"\0"
    return bytes([tag]) + (size if len(body) < 0x80 else bytes([0x80 + len(size)]) + size) + body


def pem(text: str) -> list:
    """The PEM blocks (RFC 7468) in text as [(label, DER bytes)], one at least. Raises
    ValueError."""
    blocks = [(label, "".join(body.split())) for label, body in re.findall(
        r"-----BEGIN ([A-Z0-9 ]+)-----([A-Za-z0-9+/\s]+(?:=\s*){0,2})-----END \1-----", text)]
    if not blocks or len(blocks) != text.count("-----BEGIN") or any(len(b) % 4 for _, b in blocks):
        raise ValueError("it is not PEM")
    return [(label, base64.b64decode(body)) for label, body in blocks]


def certificates(data: bytes) -> list:
    """The certificates (DER) in a file's bytes (PEM), one at least. Raises ValueError."""
    found = [der for label, der in pem(data.decode("ascii", "replace")) if label == "CERTIFICATE"]
    if not found:
        raise ValueError("it holds no certificate")
    return found


# The algorithm of a key, in PKCS#8 and in a public key alike (RFC 3279 section 2.3, RFC 5480
# section 2.1.1, RFC 8410 section 3): RSA; what all keys on curves with a name begin with; a kind.
RSA = tlv(6, bytes.fromhex("2a864886f70d010101")) + tlv(5)
EC = tlv(6, bytes.fromhex("2a8648ce3d0201"))
KINDS = {
    EC + tlv(6, bytes.fromhex("2a8648ce3d030107")): ("ec-p256", 256),
    EC + tlv(6, bytes.fromhex("2b81040022")): ("ec-p384", 384),
    EC + tlv(6, bytes.fromhex("2b81040023")): ("ec-p521", 521),
    tlv(6, bytes.fromhex("2b6570")): ("ed25519", 256)}
COMMON_NAME, ORGANISATION = bytes.fromhex("550403"), bytes.fromhex("55040a")
SUBJECT_ALT_NAME, AUTHORITY_KEY = bytes.fromhex("551d11"), bytes.fromhex("551d23")
EXTENSION_REQUEST = bytes.fromhex("2a864886f70d01090e")


def public_key(text: str) -> bytes:
    """The SubjectPublicKeyInfo (DER) of a private key in PEM.

    PKCS#1 (RFC 8017), which old RSA keys come in, and PKCS#8 (RFC 5958) are read here, which is
    quicker; all else is left to openssl. Raises ValueError, ToolError.
    """
    if "ENCRYPTED" in text:
        raise ValueError("it needs a passphrase")
    label, key = pem(text)[0] if "-----BEGIN" in text else ("", b"")
    algorithm = RSA if label == "RSA PRIVATE KEY" else b""
    public = b""
    if label == "PRIVATE KEY":
        _, (_, algorithm), (_, key), *_ = inside(key)
    if algorithm == RSA:
        _, modulus, exponent, *_ = inside(key)
        public = tlv(3, b"\0", tlv(0x30, tlv(*modulus), tlv(*exponent)))
    elif algorithm.startswith(EC):
        public = dict(inside(key)).get(0xa1)  # it need not be there (RFC 5915 section 3)
    if public:
        return tlv(0x30, tlv(0x30, algorithm), public)
    return openssl("pkey", "-pubout", "-outform", "DER", stdin=text.encode())


def key_kind(spki: bytes) -> tuple:
    """(type, bits) of a SubjectPublicKeyInfo (DER; RFC 5280 section 4.1.2.7): ("rsa", 3072),
    ("ec-p256", 256), ... and ("another kind", 0). Raises ValueError."""
    (_, algorithm), (_, key) = inside(spki)
    if algorithm == RSA:
        (_, modulus), _ = inside(key[1:])
        return "rsa", int.from_bytes(modulus, "big").bit_length()
    return KINDS.get(algorithm, ("another kind", 0))


def attributes(name: bytes) -> list:
    """[(OID, text)] of a distinguished name (DER body; RFC 5280 section 4.1.2.4). Raises
    ValueError."""
    pairs = [der(pair) for _, some in der(name) for _, pair in der(some)]
    return [(oid, text.decode("utf-8", "replace")) for (_, oid), (_, text) in pairs]


def name_text(name: bytes) -> str:
    """What to call the one with this distinguished name (DER body): its common name, else its
    organisation, else "". Raises ValueError."""
    known = dict(reversed(attributes(name)))  # the first of several
    return printable(known.get(COMMON_NAME) or known.get(ORGANISATION) or "")


def value_of(items: list, wanted: bytes) -> bytes:
    """The value (DER) of the first with this OID of the items of Extensions or of a request's
    Attributes (RFC 5280 section 4.2, RFC 2986 section 4.1), an empty sequence if there is no such
    one. Raises ValueError."""
    for _, item in items:
        (_, oid), *_, (_, value) = der(item)
        if oid == wanted:
            return value
    return tlv(0x30)


def extension_names(extensions: bytes) -> list:
    """The names in the subjectAltName of Extensions (DER; RFC 5280 section 4.2.1.6), in lower case,
    addresses as text; what is neither begins with its tag in brackets. Raises ValueError."""
    names = []
    for tag, name in inside(value_of(inside(extensions), SUBJECT_ALT_NAME)):
        if tag == 0x87 and len(name) in (4, 16):
            import ipaddress
            names.append(str(ipaddress.ip_address(name)))
        else:
            names.append(name.decode("ascii", "backslashreplace").lower() if tag == 0x82
                         else f"[{tag & 0x1f}]{name.hex()}")
    return names


def is_address(name: str) -> bool:
    """Is a name of a certificate an IP address?"""
    return ":" in name or name.rpartition(".")[2].isdigit()


def general_name(name: str) -> bytes:
    """A name as GeneralName (DER; RFC 5280 section 4.2.1.6, RFC 8738 section 3). Raises
    ValueError."""
    if is_address(name):
        import ipaddress
        return tlv(0x87, ipaddress.ip_address(name).packed)
    return tlv(0x82, name.encode())


def der_time(tag: int, body: bytes) -> int:
    """Seconds since 1970 of a UTCTime or GeneralizedTime (RFC 5280 section 4.1.2.5). Raises
    ValueError."""
    text = body.decode("ascii")
    if tag == 0x17:  # a UTCTime has two digits for the years 1950 to 2049
        text = ("19" if text >= "50" else "20") + text
    match = re.match("([0-9]{4})" + 5 * "([0-9]{2})" + r"Z\Z", text)
    if not match:
        raise ValueError("its dates are not as RFC 5280 says")
    return int(datetime(*map(int, match.groups()), tzinfo=timezone.utc).timestamp())


# What matters of a certificate: names (list), not_before and not_after (seconds since 1970), spki
# (DER), issuer, subject, serial (DER bodies); authority: the key identifier of the CA's key
# (bytes), b"" if it is not there
Certificate = namedtuple("Certificate", "names not_before not_after spki issuer subject serial "
                                        "authority")


def parse_certificate(data: bytes) -> Certificate:
    """A certificate in DER (RFC 5280 section 4.1). Raises ValueError."""
    (_, body), *_ = inside(data)
    version, *fields = der(body)
    if version[0] != 0xa0:  # it need not be there
        fields.insert(0, version)
    (_, serial), _, (_, issuer), (_, validity), (_, subject), spki, *rest = fields
    not_before, not_after = [der_time(*item) for item in der(validity)]
    extensions = dict(rest).get(0xa3, tlv(0x30))
    authority = dict(inside(value_of(inside(extensions), AUTHORITY_KEY))).get(0x80, b"")
    return Certificate(extension_names(extensions), not_before, not_after, tlv(*spki), issuer,
                       subject, serial, authority)


def parse_csr(data: bytes) -> tuple:
    """(names, SPKI in DER) of a PKCS#10 request in DER (RFC 2986 section 4): the common name's and
    the subjectAltName's DNS names and addresses. Raises ValueError."""
    try:
        (_, body), *_ = inside(data)
        _, (_, subject), spki, (_, requested), *_ = der(body)
        names = [text.lower() for oid, text in attributes(subject) if oid == COMMON_NAME]
        names += extension_names(value_of(der(requested), EXTENSION_REQUEST))
    except ValueError as error:
        raise ValueError(f"this is no certificate request: {error}")
    return [name for name in dict.fromkeys(names) if not name.startswith("[")], tlv(*spki)


def make_csr(key_file: str, names: list) -> bytes:
    """A PKCS#10 request (DER; RFC 2986) for these names and addresses, signed by the key in a PEM
    file.

    Its subject is empty, so the names in it are critical (RFC 5280 section 4.2.1.6). `openssl req`
    would want its config in a file, or /dev/stdin, which needs /proc. Raises ToolError, OSError,
    ValueError.
    """
    with open(key_file, encoding="ascii", errors="replace") as file:
        spki = public_key(file.read())
    san = tlv(0x30, *map(general_name, names))
    critical = tlv(1, b"\xff")
    extensions = tlv(0x30, tlv(0x30, tlv(6, SUBJECT_ALT_NAME), critical, tlv(4, san)))
    attribute = tlv(0x30, tlv(6, EXTENSION_REQUEST), tlv(0x31, extensions))
    version, subject = tlv(2, b"\0"), tlv(0x30)
    info = tlv(0x30, version, subject, spki, tlv(0xa0, attribute))
    algorithm = [tlv(6, bytes.fromhex("2a864886f70d01010b")), tlv(5)]  # sha256WithRSAEncryption
    if key_kind(spki)[0] != "rsa":
        algorithm = [tlv(6, bytes.fromhex("2a8648ce3d040302"))]        # ecdsa-with-SHA256
    signature = openssl("dgst", "-sha256", "-sign", key_file, stdin=info)
    return tlv(0x30, info, tlv(0x30, *algorithm), tlv(3, b"\0", signature))


def check_chain(text: str, spki: bytes, names: list, *clocks: float) -> str:
    """The chain in text (PEM; RFC 8555 section 9.1), written anew from its blocks, if it is what
    was asked for: it will be installed as it is.

    spki: our public key (DER); clocks: seconds since 1970, by one of which it must be valid.
    Raises OrderFailed.
    """
    import ssl
    try:
        labels, ders = zip(*pem(text))
        chain = list(map(parse_certificate, ders))
    except ValueError as error:
        raise OrderFailed(f"the CA's answer is no chain of certificates: {error}")
    leaf, wrong = chain[0], ""
    if set(labels) != {"CERTIFICATE"}:
        wrong = "holds what is no certificate"
    elif leaf.spki != spki:
        wrong = "is for another key"
    elif set(leaf.names) != {name.lower() for name in names}:
        wrong = f"is for other names ({printable(', '.join(leaf.names))})"
    # A clock may be a little behind
    elif not any(leaf.not_before <= now + 3600 and now < leaf.not_after for now in clocks):
        wrong = (f"is not valid now, but from {utc(leaf.not_before)} to {utc(leaf.not_after)}: "
                 "is the clock right?")
    elif [one.issuer for one in chain[:-1]] != [above.subject for above in chain[1:]]:
        wrong = "came with a chain in which one did not issue the one before"
    if wrong:
        raise OrderFailed(f"the CA's certificate is not used: it {wrong}")
    return "".join(map(ssl.DER_cert_to_PEM_cert, ders))


# ---- Account key --------------------------------------------------------------------------------
# Reads the account key's file, for its public half; has openssl sign.


def b64(data: bytes) -> str:
    """data as base64url without padding, RFC 7515 section 2."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text: str) -> bytes:
    """The data in a base64url text, with or without padding. Raises ValueError."""
    text = text.strip().rstrip("=")
    return base64.b64decode(text + "=" * (-len(text) % 4), "-_", True)


def jwk_of(spki: bytes) -> tuple:
    """(algorithm, JWK) for a public key in DER (RFC 7518 sections 3.1, 6.2.1, 6.3.1; RFC 7517).
    Raises ValueError."""
    kind, bits = key_kind(spki)
    body = inside(spki)[1][1][1:]  # a bit string begins with how many bits of its end are unused
    if kind == "rsa" and bits >= 2048:
        modulus, exponent = [b64(number.lstrip(b"\0")) for _, number in inside(body)]
        return "RS256", {"e": exponent, "kty": "RSA", "n": modulus}
    size = bits // 8  # of a coordinate
    if kind in ("ec-p256", "ec-p384") and len(body) == 1 + 2 * size:
        x, y = b64(body[1:1 + size]), b64(body[1 + size:])
        return f"ES{bits}", {"crv": f"P-{bits}", "kty": "EC", "x": x, "y": y}
    kind = f"{kind} of {bits} bits" if kind == "rsa" else kind
    raise ValueError(f"it is {kind}, but CAs take RSA of 2048 bits or more, P-256 or P-384")


class AccountKey:
    """An ACME account key in a PEM file: RSA of 2048 bits or more, P-256 or P-384.

    jwk (dict, RFC 7517), thumbprint (RFC 7638), alg (RFC 7518). The private key stays in its file:
    openssl signs. Raises ToolError, AcmeError, OSError.
    """

    def __init__(self, path: str):
        import hashlib
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                text = file.read()
            if text.lstrip().startswith("{"):
                raise ValueError("it is a JWK, as certbot keeps its account keys: convert it to "
                                 "PEM, or name a file that is not there, for a new account")
            self.alg, self.jwk = jwk_of(public_key(text))
        except (FileNotFoundError, ToolError):
            openssl("rsa", "-in", path, "-noout")  # its words are what acme-tiny's users know
            raise
        except ValueError as error:
            raise AcmeError(f"{path} is no account key that can be used: {error}")
        self.path = path
        canonical = json.dumps(self.jwk, sort_keys=True, separators=(",", ":"))
        self.thumbprint = b64(hashlib.sha256(canonical.encode()).digest())

    def sign(self, data: bytes) -> bytes:
        """The signature of data for a JWS: ECDSA as r and s (RFC 7518 section 3.4). Raises
        ToolError."""
        digest = self.alg[2:]
        made = openssl("dgst", f"-sha{digest}", "-sign", self.path, stdin=data)
        if self.alg == "RS256":
            return made
        size = int(digest) // 8
        return b"".join(number.lstrip(b"\0").rjust(size, b"\0") for _, number in inside(made))


def jws(key, head: dict, payload: dict = None) -> dict:
    """A payload (None: an empty text), signed as flattened JSON (RFC 7515 section 7.2.2), with this
    protected header. key: an AccountKey, or alike. Raises ToolError."""
    protected = b64(json.dumps({"alg": key.alg, **head}).encode())
    body = "" if payload is None else b64(json.dumps(payload).encode())
    signature = b64(key.sign(f"{protected}.{body}".encode()))
    return {"protected": protected, "payload": body, "signature": signature}


class MacKey:
    """A key for an external account binding (RFC 8555 section 7.3.4), with the id that the CA gave
    it; mac: base64url. Raises AcmeError."""
    alg = "HS256"

    def __init__(self, kid: str, mac: str):
        try:
            self.kid, self.mac = kid, unb64(mac)
        except ValueError:
            raise AcmeError("the MAC key of the external account is no base64url text")

    def sign(self, data: bytes) -> bytes:
        """The MAC of data."""
        import hmac
        return hmac.new(self.mac, data, "sha256").digest()


# ---- https --------------------------------------------------------------------------------------
# Talks to the CA's servers, and knows nothing of ACME.


# What a server answered: status (int), headers (email.message.Message), body (bytes)
Reply = namedtuple("Reply", "status headers body")


def within(seconds: float, function, *args):
    """function(*args), its result or its error, or TimeoutError after so many seconds.

    It runs in a thread, which is left behind then: a socket's timeout holds for each read alone,
    and there is none for a look at DNS.
    """
    import threading
    done = []

    def run():
        try:
            done.append(function(*args))
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"timed out: no whole answer in {seconds:.0f} seconds")
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]


def tls_context(ca_bundle: str = None):
    """The ssl.SSLContext that trusts the CAs in a file (None: those of the system, or of
    SSL_CERT_FILE). Raises ToolError."""
    import ssl
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise ToolError(f"ca-bundle: {ca_bundle} cannot be loaded: {error}")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An end that TLS does not declare may be an attacker's; Python has OpenSSL 3 overlook it
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0x80)
    return context


class Web:
    """https to the CA's servers, certificates checked; no redirects. A connection is kept for the
    next request once its answer is whole.

    ca_bundle: as of tls_context(), whose errors it raises; proxy: URL, or None for https_proxy and
    no_proxy of the environment. resent: how many requests were sent twice, as the answer to the
    first was lost.
    """

    def __init__(self, ca_bundle: str = None, proxy: str = None):
        self.proxy, self.kept, self.resent = proxy, {}, 0
        self.context = tls_context(ca_bundle)

    def __del__(self):
        for connection in self.kept.values():
            connection.close()

    def ask(self, method: str, url: str, body: bytes, headers: dict) -> Reply:
        """The whole answer to one request. Raises whatever a hostile URL or answer makes Python
        raise."""
        import http.client, ssl, urllib.parse
        parts = urllib.parse.urlsplit(url)
        target = f"{parts.path or '/'}?{parts.query}".rstrip("?")
        kept = self.kept.pop(parts.netloc, None)
        connection = kept or self.connect(parts)
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            while response.status < 200:  # it is informational (RFC 9110 section 15.2)
                response.headers = None   # or it would read no other
                response.begin()
        except (ConnectionError, ssl.SSLError, http.client.BadStatusLine):
            if not kept:
                raise
            self.resent += 1  # the server has closed it meanwhile: once more, on a new one
            return self.ask(method, url, body, headers)
        data = response.read(ANSWER_BYTES + 1)
        if len(data) > ANSWER_BYTES or response.length:
            raise ValueError(f"the answer was cut short, or has over {ANSWER_BYTES} bytes")
        if connection.sock and not response.will_close:
            self.kept[parts.netloc] = connection
        return Reply(response.status, response.headers, data)

    def connect(self, parts):
        """A new http.client.HTTPSConnection to the host of a URL (urllib's SplitResult)."""
        from http.client import HTTPSConnection
        from urllib.parse import unquote, urlsplit
        proxy, headers = self.proxy, {}
        if not proxy and any(name.lower() == "https_proxy" for name in os.environ):
            from urllib.request import getproxies, proxy_bypass  # which takes its time
            proxy = None if proxy_bypass(parts.netloc) else getproxies().get("https")
        way = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else parts
        # Of several addresses the first need not answer
        connection = HTTPSConnection(way.hostname, way.port or (80 if proxy else 443),
                                     timeout=REQUEST_SECONDS / 3, context=self.context)
        if way.username:
            login = f"{unquote(way.username)}:{unquote(way.password or '')}"
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        if proxy:
            connection.set_tunnel(parts.hostname, parts.port or 443, headers)
        connection.connect()
        connection.sock.settimeout(REQUEST_SECONDS)
        connection.sock.suppress_ragged_eofs = False  # as in tls_context()
        return connection


def http_date(text: str) -> float:
    """Seconds since 1970 of an HTTP-date (RFC 9110 section 5.6.7), or None."""
    from email.utils import parsedate_to_datetime
    try:
        return parsedate_to_datetime(text).replace(tzinfo=timezone.utc).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def retry_after(headers) -> int:
    """Seconds that Retry-After in the headers of a Reply (RFC 9110 section 10.2.3) asks for, None
    if it is missing or makes no sense."""
    value = (headers.get("Retry-After") or "").strip()
    if re.match(r"[0-9]+\Z", value):
        return int(value[:4000])  # Python reads no longer ones
    until, now = http_date(value), http_date(headers.get("Date")) or time.time()
    return None if until is None else max(0, int(until - now))


def rfc3339(text: str) -> float:
    """Seconds since 1970 of a date such as 2026-11-26T06:32:00.5+01:00 (RFC 3339 section 5.6).
    Raises ValueError."""
    match = re.match(r"([0-9-]{10}[Tt ][0-9:]{8})(\.[0-9]+)?([Zz]|[+-][0-9:]{5})\Z", text)
    if not match:
        raise ValueError("no date")
    zone = match[3].upper().replace("Z", "+00:00")
    return datetime.fromisoformat(match[1].upper() + zone).timestamp() + float(match[2] or 0)


def alternates(headers) -> list:
    """The URLs that Link headers of a Reply (RFC 8288) name as alternate."""
    links = [link for text in headers.get_all("Link") or ()
             for link in re.findall(r"<([^<>]+)>((?:[^<,\"]|\"[^\"]*\")*)", text)]
    return [url for url, words in links
            if re.search(r";\s*rel\s*=\s*\"?alternate\"?\s*(;|\Z)", words, re.I)]


# ---- Client: one account ------------------------------------------------------------------------
# Talks ACME to the CA by the room above.


def parse_json(reply: Reply, **kinds: type) -> dict:
    """The JSON object in a Reply whose members are of these kinds (name=type), at least. Raises
    AcmeError."""
    try:
        value = json.loads(reply.body.decode("utf-8"))
    except (ValueError, RecursionError):
        value = None
    wrong = "no JSON object" if not isinstance(value, dict) else ""
    for name, kind in kinds.items():
        if not wrong and not isinstance(value.get(name), kind):
            wrong = f"no JSON object with a usable '{name}'"
    if wrong:
        shown = printable(reply.body.decode("utf-8", "replace"), 200)
        raise AcmeError(f"the CA's answer is {wrong}: {shown}", 0)
    return value


def member(thing, name: str, kind: type = str):
    """The member of a JSON object with this name if both are what they should be, else an empty one
    of that kind: what else it may be is not even shown, as it may be nested too deeply for that."""
    value = thing.get(name) if isinstance(thing, dict) else None
    return value if isinstance(value, kind) else kind()


def problem_text(problem) -> str:
    """A problem document (RFC 7807, RFC 8555 section 6.7; any JSON) as one line of text."""
    who = member(problem, "identifier", dict)
    parts = [member(who, "value"), member(problem, "type"), member(problem, "detail")]
    parts += [problem_text({**sub, "subproblems": None, "instance": None})
              for sub in member(problem, "subproblems", list) if isinstance(sub, dict)]
    parts.append(member(problem, "instance"))
    return printable(": ".join(printable(p) for p in parts if p), 2000) or "no reason given"


def identifiers(names: list) -> list:
    """Names and addresses as an order has them (section 7.1.3, RFC 8738 section 4)."""
    return [{"type": "ip" if is_address(name) else "dns", "value": name} for name in names]


def location(reply: Reply) -> str:
    """The Location header: the URL of an account or order (sections 7.3, 7.4). Raises
    AcmeError."""
    if not reply.headers.get("Location"):
        raise AcmeError("the CA's answer has no Location header")
    return reply.headers["Location"]


class Client:
    """One account at one ACME server (RFC 8555, whose sections are named below).

    url: the directory's; key: AccountKey; account: its URL if it is known; contact: list of URLs;
    eab: MacKey, or None; log, news: called with a text, news with what a person should know. Every
    method raises AcmeError for whatever the CA's answers cause, and ToolError if openssl cannot
    sign.
    skew: seconds that the CA's clock is ahead of ours, None before the first answer with a Date.
    """

    def __init__(self, url: str, key: AccountKey, account: str = None, contact: list = None,
                 ca_bundle: str = None, proxy: str = None, eab: MacKey = None,
                 log=lambda text: None, news=lambda text: None):
        self.url, self.key, self.account, self.contact = url, key, account, contact
        self.web, self.eab, self.log, self.news = Web(ca_bundle, proxy), eab, log, news
        self.nonce = self.skew = self.links = None

    def fetch(self, what: str, url: str, method: str = "GET", body: bytes = None,
              seconds: float = REQUEST_SECONDS) -> Reply:
        """The CA's answer to one request. what: what is being done, for errors; body: a JWS."""
        if not url.lower().startswith("https://"):
            raise AcmeError(f"{what}: the CA names an address that is not https: {printable(url)}")
        headers = {"User-Agent": f"letsencrypt-tiny/{__version__}", "Accept-Language": "en"}
        if body is not None:
            headers["Content-Type"] = "application/jose+json"
        try:
            reply = within(seconds, self.web.ask, method, url, body, headers)
        except Exception as error:
            reason = printable(str(error) or type(error).__name__)
            if 80 <= getattr(error, "verify_code", 0) <= 93:  # what VERIFY_X509_STRICT refuses
                reason += (": Python 3.13 and later want certificates to keep RFC 5280 to the "
                           "letter; those of this CA, or of ca-bundle, must be made anew")
            raise AcmeError(f"{what}: no usable answer from {printable(url)}: {reason}", 0)
        self.nonce = reply.headers.get("Replay-Nonce") or self.nonce
        date = http_date(reply.headers.get("Date"))
        self.skew = self.skew if date is None else date - time.time()
        if 200 <= reply.status < 300:
            return reply
        try:
            problem = parse_json(reply)
        except AcmeError:
            problem = {"detail": printable(reply.body.decode("utf-8", "replace").strip(), 200)}
        raise AcmeError(
            f"{what}: the CA refused ({reply.status}): {problem_text(problem)} ({printable(url)})",
            reply.status, member(problem, "type").rpartition(":")[2],
            retry_after(reply.headers) if reply.status in (429, 503) else None)

    def directory(self, name: str) -> str:
        """The URL of a resource in the directory (7.1.1), which is asked for once; "" if the CA has
        no such one."""
        if self.links is None:
            self.log("Getting directory...")
            self.links = parse_json(self.fetch("getting the directory", self.url), newNonce=str,
                                    newAccount=str, newOrder=str)
            self.log("Directory found!")
        return member(self.links, name)

    def meta(self) -> dict:
        """What the directory says of the CA (7.1.1)."""
        self.directory("newOrder")
        return member(self.links, "meta", dict)

    def ask_nonce(self):
        """Have a nonce (7.2) for the next request; with it comes the CA's time."""
        if not self.nonce:
            self.fetch("getting a nonce", self.directory("newNonce"), "HEAD")

    def post(self, what: str, url: str, payload: dict = None, unless: str = None) -> Reply:
        """The answer to a signed request (6.2), without a payload POST-as-GET (6.3), or None if the
        CA refuses by a problem of the type unless; what: as in fetch(). A refused nonce (6.5) costs
        another try."""
        deadline, resent = time.monotonic() + REQUEST_SECONDS, self.web.resent
        for tries in itertools.count(1):
            self.ask_nonce()
            head = {"kid": self.account} if self.account else {"jwk": self.key.jwk}
            signed = jws(self.key, {**head, "nonce": self.nonce, "url": url}, payload)
            self.nonce, left = None, deadline - time.monotonic()
            try:
                return self.fetch(what, url, "POST", json.dumps(signed).encode(), max(1, left))
            except AcmeError as error:
                if error.type == unless:
                    return None
                pause = 0 if tries < NONCES else 3  # some servers refuse most nonces, to test us
                # A request whose answer is lost each time may have been obeyed each time
                obeyed = self.web.resent > resent + 2
                if error.type != "badNonce" or obeyed or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)

    def register(self):
        """Make the account, or find it by its key (7.3, 7.3.1, 7.3.4); sets .account."""
        self.account, url = None, self.directory("newAccount")
        self.log("Registering account...")
        terms = {"termsOfServiceAgreed": True}
        if self.eab:
            head = {"kid": self.eab.kid, "url": url}
            terms["externalAccountBinding"] = jws(self.eab, head, self.key.jwk)
        contact = {} if self.contact is None else {"contact": self.contact}
        try:
            reply = self.post("registering", url, {**terms, **contact})
        except AcmeError as error:
            if error.type == "externalAccountRequired":
                raise AcmeError(f"{UNBOUND} ({error})", error.status)
            if not contact or error.status != 400 and "Contact" not in error.type:
                raise
            self.log(f"The CA does not take the contact: {error}")
            reply, contact = self.post("registering", url, terms), {}
        self.account = location(reply)
        known = "Registered!" if reply.status == 201 else "Already registered!"
        self.log(f"{known} Account ID: {printable(self.account)}")
        try:
            if contact and reply.status == 200:
                self.post("updating the contact", self.account, contact)
            if contact:  # Let's Encrypt shows none in its answer
                self.log("Updated contact details:\n" + "\n".join(self.contact))
        except AcmeError as error:
            if error.retry_after is not None:
                raise
            self.log(str(error))  # it is optional: some CAs forget it, or refuse

    def exists(self) -> bool:
        """Is there an account with this key (7.3.1)?"""
        return self.post("looking for the account", self.directory("newAccount"),
                         {"onlyReturnExisting": True}, "accountDoesNotExist") is not None

    def check_profile(self, profile: str = None):
        """Raise AcmeError if the CA does not offer a profile (draft-ietf-acme-profiles)."""
        offered = member(self.meta(), "profiles", dict)
        if profile and profile not in offered:
            offered = printable(", ".join(offered) or "none")
            raise AcmeError(f"the CA has no profile {profile}; it offers: {offered}")

    def order(self, names: list, profile: str = None, replaces: str = None) -> "Order":
        """Place an order for these names and addresses (7.4, RFC 8738), by a profile of the CA's
        (draft-ietf-acme-profiles), as what replaces a certificate (its renewal_id())."""
        self.check_profile(profile)
        known = bool(self.account)
        payload = {"identifiers": identifiers(names), "profile": profile,
                   "replaces": replaces if known else None}  # another account has none of it
        payload = {name: value for name, value in payload.items() if value}
        while True:
            if not self.account:
                self.register()
            self.log("Creating new order...")
            try:
                reply = self.post(f"ordering for {printable(', '.join(names))}",
                                  self.directory("newOrder"), payload)
                self.log("Order created!")
                return Order(self, location(reply), reply)
            except AcmeError as error:
                if payload.pop("replaces", None):
                    # Whatever it has against that, it must not stop the order
                    if not error.status or error.retry_after is not None:
                        raise
                    self.log(str(error))
                # Servers word an unknown account in many ways; to register again does no harm
                elif known and error.status in (400, 401, 403, 404, 500) and error.type in (
                        "", "accountDoesNotExist", "malformed", "unauthorized", "serverInternal"):
                    self.account, known = None, False
                else:
                    raise

    def resume(self, url: str) -> "Order":
        """The order with this URL, which an earlier run placed; None if the CA knows it no more."""
        if not self.account:
            self.register()
        try:
            return Order(self, url, self.post("asking for the order", url))
        except AcmeError as error:
            if error.status != 404:
                raise
            self.log(str(error))

    def obtain(self, names: list, csr: bytes, solver: "Solver", known: str = None,
               finalizing=lambda url: None, profile: str = None, replaces: str = None,
               issuer: str = None) -> tuple:
        """(chain (PEM), the order's URL) for names: by the order at the URL known, which an earlier
        run placed, or by a new one. For the rest see order() and Order.obtain()."""
        order = self.resume(known) if known else None
        if not order:
            solver.ready(names, self)
            order = self.order(names, profile, replaces)
        return order.obtain(csr, solver, finalizing, issuer), order.url

    def renewal_window(self, data: bytes) -> dict:
        """When the CA suggests that a certificate (DER) be renewed (RFC 9773 section 4): begin,
        end, url of an explanation or "", wait: seconds until it may be asked again."""
        reply = self.fetch("asking when to renew", "/".join(
            [self.directory("renewalInfo").rstrip("/"), renewal_id(data)]))
        found, wait = parse_json(reply, suggestedWindow=dict), retry_after(reply.headers)
        try:
            begin, end = [rfc3339(member(found["suggestedWindow"], name))
                          for name in ("start", "end")]
        except (ValueError, OverflowError) as error:
            raise AcmeError(f"the CA's answer names no window for a renewal: {error}", 0)
        if end <= begin:
            raise AcmeError("the CA's window for a renewal ends before it begins", 0)
        return {"begin": begin, "end": end, "url": member(found, "explanationURL"),
                "wait": 6 * 3600 if wait is None else wait}

    def revoke(self, data: bytes, reason: int):
        """Revoke a certificate (DER), for a reason (RFC 5280 section 5.3.1), by the account, or,
        without one, by this key, which then is that of the certificate (7.6)."""
        if not self.post("revoking the certificate", self.offered("revokeCert"),
                         {"certificate": b64(data), "reason": reason}, "alreadyRevoked"):
            self.news("It was revoked before")

    def change_key(self, new: AccountKey):
        """Give the account another key (7.3.5)."""
        url = self.offered("keyChange")
        inner = jws(new, {"jwk": new.jwk, "url": url},
                    {"account": self.account, "oldKey": self.key.jwk})
        self.post("changing the account's key", url, inner)
        self.key = new

    def deactivate(self):
        """End the account, for good (7.3.6)."""
        self.post("deactivating the account", self.account, {"status": "deactivated"})

    def offered(self, name: str) -> str:
        """The URL of a resource that not every CA has."""
        if not self.directory(name):
            raise AcmeError(f"this CA offers no {name}")
        return self.links[name]


def renewal_id(data: bytes) -> str:
    """What a CA calls a certificate (DER) when it is asked when to renew it (RFC 9773 section 4.1),
    "" if it cannot be known. Raises ValueError."""
    crt = parse_certificate(data)
    return f"{b64(crt.authority)}.{b64(crt.serial)}" if crt.authority else ""


# ---- Order: one order ---------------------------------------------------------------------------
# Talks ACME to the CA by the room above; what proves a name is put in place by the solvers below.


class Order:
    """One order for a certificate (RFC 8555 section 7.1.3), with the first Reply that showed it.

    status: as in section 7.1.6; body: what the CA said of it so far (dict); unproved: [(name,
    authorization URL)] of what the CA now verifies. Methods raise as a Client's.
    """

    def __init__(self, client: Client, url: str, reply: Reply):
        self.client, self.url, self.body, self.unproved = client, url, {}, []
        self.take(reply)

    def take(self, reply: Reply):
        """Note what an answer says of the order; some CAs say things only once."""
        self.body = {**self.body, **parse_json(reply, status=str)}
        self.status, self.hint = self.body["status"], retry_after(reply.headers)

    def ask(self):
        """Ask how the order is (7.4)."""
        self.take(self.client.post("asking for the order", self.url))

    def obtain(self, csr: bytes, solver: "Solver", finalizing=lambda url: None,
               issuer: str = None) -> str:
        """Carry the order to its end, whatever its status (7.1.6): the checked chain (PEM).

        csr: PKCS#10 in DER; solver: what can prove that a name is ours (see the next room);
        finalizing: called with the order's URL before the CA is told to issue, so that a later run
        can go on with the order if this one dies, or the CA takes too long; issuer: name of who
        issued the last certificate of the chain that is wanted.
        """
        names, spki = parse_csr(csr)
        try:
            for name in names if self.status == "ready" else ():
                self.client.log(f"Already verified: {name}, skipping...")
            if self.status == "pending":
                self.authorize(names, solver)
            for last in False, True:
                if self.status == "ready":
                    self.finalize(csr, finalizing, last)
            self.wait("processing")
        finally:
            solver.remove()
        if self.status == "valid":
            return self.download(spki, names, issuer)
        reason = f"it is {printable(self.status)}: {problem_text(self.body.get('error'))}"
        raise OrderFailed(f"Order failed for {printable(', '.join(names))}: {reason}")

    def authorize(self, names: list, solver: "Solver"):
        """Have put in place what proves each name that the order wants proved, tell the CA of all,
        and wait for its word (7.5, 7.5.1, 8)."""
        urls, left, chosen = self.body.get("authorizations"), {name.lower() for name in names}, []
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise AcmeError("the CA's order has no usable 'authorizations'")
        for url in urls:
            reply = self.client.post("asking for an authorization", url)
            found = parse_json(reply, identifier=dict, status=str)
            name = member(found["identifier"], "value").lower()
            name = f"*.{name}" if found.get("wildcard") is True else name
            if name not in left:
                raise AcmeError(f"the CA wants an authorization for {printable(name)}: that was "
                                "not asked for, or twice")
            left.remove(name)
            if found["status"] == "valid":
                self.client.log(f"Already verified: {name}, skipping...")
                continue
            chosen.append((name, *self.choose(name, found, solver)))
            self.unproved.append((name, url))
        if chosen:
            solver.present([task for _, task, _ in chosen])
        for name, _, challenge in chosen:
            self.client.log(f"Verifying {name}...")
            self.client.post(f"asking the CA to verify {name}", challenge, {})
        self.hint = None  # that of the order's first answer was for later
        self.wait("pending")
        for name, *_ in chosen:
            self.client.log(f"{name} verified!")

    def choose(self, name: str, authorization: dict, solver: "Solver") -> tuple:
        """(task, challenge's URL) for the first challenge in an authorization (7.1.4) that the
        solver takes."""
        for challenge in member(authorization, "challenges", list):
            usable = authorization["status"] == "pending" and member(challenge, "url") and (
                challenge.get("status", "pending") == "pending")
            task = solver.task(name, challenge, self.client) if usable else None
            if task is not None:
                return task, challenge["url"]
        raise AcmeError(f"{name} cannot be verified: its authorization is "
                        f"{printable(authorization['status'])}, with no challenge that we can meet")

    def finalize(self, csr: bytes, finalizing, last: bool):
        """Have the CA issue, and wait for it (7.4). An answer that is lost or late is no failure:
        the order tells. last: it is not tried again."""
        busy = ["pending", "processing"]
        self.client.log("Signing certificate...")
        finalizing(self.url)
        try:
            self.take(self.client.post("finalizing the order", member(self.body, "finalize"),
                                       {"csr": b64(csr)}))
            busy.append("ready")  # for a moment it may still say so
        except AcmeError as error:
            if last or error.status != 0 and error.type != "orderNotReady":
                raise
            self.ask()
        self.wait(*busy)

    def wait(self, *busy: str):
        """Ask for the order until its status is none of these (7.4): when Retry-After says, else at
        once, after 50 ms, 100 ms ... 5 s, for POLL_SECONDS at most."""
        deadline, pause = time.monotonic() + POLL_SECONDS, 0
        while self.status in busy and time.monotonic() < deadline - 0.1:
            wait = pause if self.hint is None else max(0.5, self.hint)
            time.sleep(max(0, min(wait, deadline - time.monotonic())))
            self.ask()
            if max(pause, wait) > 0.5 and self.status in busy:
                self.look(False)  # some CAs leave the order pending when a validation failed
            pause = min(5, pause * 2 or 0.05)
        if self.status in busy or self.status == "invalid":
            self.look(True)
        if self.status in busy:
            names = ", ".join(name for name, _ in self.unproved)
            names = f" (not verified: {printable(names)})" if names else ""
            raise AcmeError(f"the order is still {self.status} after {POLL_SECONDS} seconds"
                            f"{names}: try again later")

    def look(self, everything: bool):
        """Raise AcmeError if a name was not proved; forget those that were. Unless everything is
        asked for, stop at the first that is still pending."""
        failed = []
        for name, url in list(self.unproved):
            reply = self.client.post(f"asking for the authorization of {name}", url)
            found = parse_json(reply, status=str, challenges=list)
            errors = "; ".join(problem_text(challenge["error"]) for challenge in found["challenges"]
                               if isinstance(challenge, dict) and challenge.get("error"))
            if found["status"] == "valid":
                self.unproved.remove((name, url))
            elif found["status"] != "pending" or errors:
                errors = errors or f"its authorization is {printable(found['status'])}"
                failed.append(f"Challenge did not pass for {name}: {errors}")
            elif not everything:
                break
        if failed:
            raise AcmeError("; ".join(failed))

    def download(self, spki: bytes, names: list, issuer: str = None) -> str:
        """The chain (PEM; 7.4.2), checked for our public key (DER) and names; of several that which
        the issuer's name tells, else the CA's own choice."""
        found, urls, ours = {}, [member(self.body, "certificate")], time.time()
        for url in urls:
            try:
                reply = self.client.post("downloading the certificate", url)
                # If the clocks differ, one of them is wrong, and the certificate shows which
                text = check_chain(reply.body.decode("ascii", "replace"), spki, names, ours,
                                   ours + (self.client.skew or 0))
            except AcmeError as error:
                if not found:
                    raise
                self.client.log(str(error))  # it does without
                continue
            found.setdefault(name_text(parse_certificate(pem(text)[-1][1]).issuer), text)
            if issuer in (None, *found):
                break
            urls += [url for url in alternates(reply.headers) if url not in urls and len(urls) < 9]
        else:
            self.client.news(f"The CA offers no chain by {issuer}, but by {', '.join(found)}: took "
                             "the first")
        self.client.log("Certificate signed!")
        return found.get(issuer) or next(iter(found.values()))


# ---- Solvers ------------------------------------------------------------------------------------
# Put in place what proves that a name is ours: these by http. HttpFiles writes files in the
# challenge folder, and talks http to the web server that serves them.


class Solver:
    """What proves names of one kind. This one has nothing to put in place, nor to take away.

    paths, records: the files, and the records in DNS, that are there, or may be.
    """
    paths = records = ()

    def ready(self, names: list, account: Client):
        """Called before an order for names is placed for a Client's account. Raises AcmeError if it
        would be in vain."""

    def task(self, name: str, challenge: dict, account: Client):
        """What must be made true for a challenge (a dict of RFC 8555 section 8) of an account, or
        None if it is not of its kind. Raises AcmeError."""

    def present(self, tasks: list):
        """Make it true, and see whether the CA will find it so. Raises AcmeError, OSError."""

    def put(self, tasks: list):
        """The part of present() that changes something. Raises OSError."""

    def remove(self):
        """Take it away: called at every end."""


def token_of(name: str, challenge: dict) -> str:
    """The token of a challenge for a name (RFC 8555 section 8). Raises AcmeError for one that might
    be something else than the name of a new file."""
    token = member(challenge, "token")
    if not re.match(r"[A-Za-z0-9_-]{22,200}\Z", token):
        raise AcmeError(f"{name} cannot be verified: its {challenge['type']} challenge has no "
                        f"usable token: {printable(token, 200)}")
    return token


class HttpFiles(Solver):
    """Solves http-01 (RFC 8555 section 8.3) by files in a folder that a web server serves.

    check: is each file fetched as the CA will, before the CA is told ("no"; "warn": trouble is
    told what is wrong; "require": AcmeError); port: for that (int or str; None: 80); note(paths):
    called with the files before they are made; trouble(text): told of files that stay behind, too.
    """

    def __init__(self, folder: str, check: str = "no", port=None, note=lambda paths: None,
                 trouble=lambda text: None):
        self.folder, self.check, self.port, self.paths = folder, check, port, []
        self.note, self.trouble = note, trouble

    def task(self, name: str, challenge: dict, account: Client) -> tuple:
        """(name, token, key authorization), or None if it is not http-01. Raises AcmeError."""
        if challenge.get("type") != "http-01":
            return None
        token = token_of(name, challenge)
        return name, token, f"{token}.{account.key.thumbprint}"

    def present(self, tasks: list):
        """Write the files for tasks, and check them. Raises ToolError, AcmeError."""
        self.put(tasks)
        end, port = time.monotonic() + CHECK_SECONDS, f":{self.port}" if self.port else ""
        for name, token, text in tasks if self.check != "no" else ():
            host = f"[{name}]" if ":" in name else name
            url = f"http://{host}{port}/.well-known/acme-challenge/{token}"
            wrong = self_check(url, text, max(1, end - time.monotonic()))
            if wrong:
                wrong = f"Wrote file to {self.folder}/{token}, but couldn't download {url}: {wrong}"
                if self.check == "require":
                    raise AcmeError(wrong)
                self.trouble(wrong)

    def put(self, tasks: list):
        """Write the files for tasks. Raises ToolError."""
        paths = [os.path.join(self.folder, token) for _, token, _ in tasks]
        self.paths = self.paths + paths
        self.note(list(self.paths))
        try:
            for path, (_, _, text) in zip(paths, tasks):
                as_owner(self.folder, write_anew, path, text)
        except OSError as error:
            raise ToolError(f"cannot write the challenge file {path}: {error.strerror}")

    def remove(self):
        """Remove the files; what cannot be removed is only told, and stays in .paths."""
        for path in list(self.paths):
            try:
                as_owner(self.folder, unlink, path)
                self.paths.remove(path)
            except OSError as error:
                self.trouble(f"cannot remove {path}: {error.strerror}")


class Stateless(Solver):
    """Solves http-01 where the web server itself makes each answer: the token, which it is asked
    for, and the account's thumbprint."""

    def task(self, name: str, challenge: dict, account: Client) -> tuple:
        """The name, or None if it is not http-01."""
        return name if challenge.get("type") == "http-01" else None


def as_owner(folder: str, function, *args):
    """function(*args), run by root with no more rights than the first other user has who owns a
    part of the way to a folder: he may let it lead elsewhere at any time."""
    parts = os.path.realpath(folder).split("/")
    ways = [os.stat("/".join(parts[:count]) or "/") for count in range(1, len(parts) + 1)]
    owner = next((info for info in ways if info.st_uid), None)
    if os.geteuid() or not owner:
        return function(*args)
    groups = os.getgroups()
    try:
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        return function(*args)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def write_anew(path: str, text: str):
    """Write a file that all may read, in the place of one that is there. Raises OSError."""
    unlink(path)
    with open(path, "xb") as file:  # x: the web server's user may be able to plant a link here
        os.fchmod(file.fileno(), 0o644)
        file.write(text.encode())


def unlink(path: str):
    """Remove a file, if it is there. Raises OSError."""
    if os.path.lexists(path):
        os.unlink(path)


def self_check(url: str, text: str, seconds: float, name: str = "") -> str:
    """Fetch what must be this text from an http URL as a CA does (RFC 8555 section 8.3): redirects
    followed without a look at TLS certificates, no proxy. name: whose page it is, if the URL has an
    address. "", or what is wrong, after so many seconds and one more at the latest."""
    import socket, ssl, urllib.parse, urllib.request as web
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = web.OpenerDirector()  # it can do only what these can: no files, no ftp
    for handler in (web.HTTPHandler(), web.HTTPSHandler(context=context), web.UnknownHandler(),
                    web.HTTPRedirectHandler(), web.HTTPErrorProcessor(),
                    web.HTTPDefaultErrorHandler()):
        opener.add_handler(handler)

    request = web.Request(url)
    if name:
        request.add_unredirected_header("Host", f"[{name}]" if ":" in name else name)
    address = "no address"

    def look():
        nonlocal address
        host = urllib.parse.urlsplit(url).hostname
        known = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
        address = " ".join(dict.fromkeys(info[4][0] for info in known))
        with opener.open(request, timeout=seconds) as answer:
            body = answer.read(1000).decode("utf-8", "replace").strip()
        return "" if body == text else f"{address}: it is another text"

    try:
        return within(seconds + 1, look)
    except Exception as error:  # whatever a strange answer makes Python raise
        return f"{address}: {printable(str(error).strip('<>') or type(error).__name__)}"


# ---- acme-tiny 5.0.3's own face -----------------------------------------------------------------
# Reads the CSR's file, writes to stdout and stderr. All from here on is only for its stand-alone
# use: it is not built into the single file, and nothing above knows of it.

DEFAULT_CA = "https://acme-v02.api.letsencrypt.org"  # deprecated, as in acme-tiny


def __getattr__(name: str):
    """LOGGER is made when it is asked for: importing logging takes its time."""
    if name != "LOGGER":
        raise AttributeError(name)
    import logging
    logger = globals()["LOGGER"] = logging.getLogger(__name__)
    logger.setLevel(logger.level or logging.INFO)
    logger.addHandler(logging.StreamHandler())
    return logger


def get_crt(account_key: str, csr: str, acme_dir: str, log=None, CA: str = DEFAULT_CA,
            disable_check: bool = False, directory_url: str = DEFAULT_DIRECTORY_URL,
            contact: list = None, check_port=None) -> str:
    """The signed chain (PEM) for a CSR, as acme-tiny 5.0.3 does it.

    account_key, csr: paths of PEM files; acme_dir: the challenge folder; log: a logging.Logger;
    CA: deprecated; disable_check: do not fetch the challenge files first; contact: list of URLs;
    check_port: for that fetch. Raises ValueError with the CA's words, IOError with openssl's.
    """
    log = log or globals().get("LOGGER") or __getattr__("LOGGER")
    log.info("Parsing account key...")
    key = AccountKey(account_key)
    log.info("Parsing CSR...")
    try:
        request = openssl("req", "-in", csr, "-outform", "DER", stdin=None)
    except ToolError as error:
        raise ToolError(f"Error loading {csr}: {error}")
    names, _ = parse_csr(request)
    log.info(f"Found domains: {', '.join(names)}")
    url = f"{CA}/directory" if CA != DEFAULT_CA else directory_url
    solver = HttpFiles(acme_dir, "no" if disable_check else "require", check_port, trouble=log.info)
    client = Client(url, key, contact=contact, log=log.info)
    return client.obtain(names, request, solver)[0]


def main(argv: list = None):
    """The command line of acme-tiny 5.0.3: the chain on stdout, the log on stderr. Raises what
    get_crt() raises."""
    import argparse
    parser = argparse.ArgumentParser(description="Get a certificate from an ACME CA by http-01. "
                                     "Read this file before you trust it with your account key.")
    add = parser.add_argument
    add("--account-key", required=True, help="PEM file with the private key of your account")
    add("--csr", required=True, help="PEM file with your certificate signing request")
    add("--acme-dir", required=True, help="folder served as /.well-known/acme-challenge/")
    add("--quiet", action="store_true", help="say nothing but errors")
    add("--disable-check", action="store_true", help="do not fetch the challenge files first")
    add("--directory-url", default=DEFAULT_DIRECTORY_URL, help="default: Let's Encrypt")
    add("--ca", dest="CA", default=DEFAULT_CA, help="deprecated, use --directory-url")
    add("--contact", nargs="*", help="contact URLs of the account, as mailto:a@example.org")
    add("--check-port", metavar="PORT", help="port for the check of challenge files, default 80")
    args = vars(parser.parse_args(argv))
    if args.pop("quiet"):
        (globals().get("LOGGER") or __getattr__("LOGGER")).setLevel("ERROR")
    sys.stdout.write(get_crt(**args))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"acme_tiny: {error}")
