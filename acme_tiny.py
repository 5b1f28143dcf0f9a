#!/usr/bin/python3 -IS
"""A tiny ACME client (RFC 8555): certificates from Let's Encrypt and its like by http-01.

It needs Python's standard library and the openssl program. What it touches: it reads the account
key and the CSR, writes and removes files in the challenge folder, and talks https to the CA. It
is the protocol half of letsencrypt-tiny, and a script and module of its own, with the command
line and the get_crt() of acme-tiny 5.0.3:

  acme_tiny.py --account-key account.key --csr domain.csr --acme-dir /srv/acme-challenge > crt

API: get_crt(), main(), AcmeError, ToolError, LOGGER. All else may change.
"""
import binascii, os, re, sys, time, types
from collections import namedtuple

__version__ = "1.0"
DEFAULT_CA = "https://acme-v02.api.letsencrypt.org"  # deprecated, as in acme-tiny
DEFAULT_DIRECTORY_URL = "https://acme-v02.api.letsencrypt.org/directory"

REQUEST_SECONDS = 30  # for a whole request, connection and answer
POLL_SECONDS = 90     # for each of: validation, issuance
CHECK_SECONDS = 10    # for all self-checks together, but one second for each
ANSWER_BYTES = 1000000
NONCES = 101          # tries of one request, each with a fresh nonce

# ---- Errors and text ----------------------------------------------------------------------------


class AcmeError(ValueError):
    """The CA refused, or did not answer as RFC 8555 says.

    status: HTTP status (int) or None; type: the problem's type without its URN prefix (str);
    retry_after: seconds (int) the CA asked us to stay away (429 and 503 only), or None.
    """

    def __init__(self, text, status=None, type="", retry_after=None):
        super().__init__(text)
        self.status, self.type, self.retry_after = status, type, retry_after


class ToolError(IOError):
    """The openssl program or a file failed; the text holds its own words."""


def require(good, text, *values):
    """Raise AcmeError with text % values (any type, made printable) unless it is good (bool)."""
    if not good:
        raise AcmeError(text % tuple(map(printable, values)))


def __getattr__(name):  # LOGGER is made when it is asked for: a cron job need not import logging
    if name != "LOGGER":
        raise AttributeError(name)
    import logging
    logger = globals()["LOGGER"] = logging.getLogger(__name__)
    logger.setLevel(logger.level or logging.INFO)
    logger.addHandler(logging.StreamHandler())
    return logger


def printable(text, limit=500):
    """text (any type) from outside as a str for a terminal: control characters, bidi controls and
    surrogates escaped, cut after `limit` (int) characters."""
    text = str(text)
    cut = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:limit])[:limit]
    return cut if len(text) <= limit else cut + "..."


def utc(seconds):
    """Seconds since 1970 (int or float) as a str such as 2026-11-23 06:32 UTC; what lies outside of
    the years 1 to 9999 as the first or last minute of them."""
    known = max(-62135596800, min(seconds, 253402300799))
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(known))


# ---- openssl, encodings, DER --------------------------------------------------------------------


def openssl(*args, stdin=b"", seconds=600):
    """Run openssl with args (str), give it stdin (bytes; None: ours), return its stdout (bytes).

    Raises ToolError with its own words, or if it takes more seconds than given. Keys are named by
    path only; a key with a passphrase fails, as there is no terminal to ask at.
    """
    import subprocess
    try:
        done = subprocess.run(("openssl", *args), input=stdin, capture_output=True, timeout=seconds,
                              start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError("openssl %s failed: %s" % (args[0], error))
    if done.returncode:
        raise ToolError("openssl %s failed (status %d): %s" % (args[0], done.returncode, printable(
            done.stderr.decode("utf-8", "replace").strip().replace("\n", "; "))))
    return done.stdout


def b64(data):
    """data (bytes) as base64url without padding (str), RFC 7515 section 2."""
    import base64
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def der(data):
    """The DER items (X.690) in data (bytes) as [(tag, body)]: int, bytes. Raises ValueError."""
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


def inside(data):
    """The DER items within the one item that data (bytes) is, as der(). Raises ValueError."""
    (_, body), = der(data)
    return der(body)


def tlv(tag, *parts):
    """One DER item (bytes) of the tag (int) and the joined parts (bytes)."""
    body = b"".join(parts)
    size = len(body).to_bytes(4, "big").lstrip(b"\0") or b"\0"
    return bytes([tag]) + (size if len(body) < 0x80 else bytes([0x80 + len(size)]) + size) + body


def pem(text):
    """The PEM blocks (RFC 7468) in text (str) as [(label, DER bytes)], one at least.
    Raises ValueError."""
    blocks = [(label, "".join(body.split())) for label, body in re.findall(
        r"-----BEGIN ([A-Z0-9 ]+)-----([A-Za-z0-9+/\s]+(?:=\s*){0,2})-----END \1-----", text)]
    if not blocks or len(blocks) != text.count("-----BEGIN") or any(len(b) % 4 for _, b in blocks):
        raise ValueError("it is not PEM")
    return [(label, binascii.a2b_base64(body)) for label, body in blocks]


# ---- Keys and certificates ----------------------------------------------------------------------

# The algorithm of a key, in PKCS#8 and in a public key alike (DER bytes; RFC 3279 section 2.3)
RSA, EC = tlv(6, bytes.fromhex("2a864886f70d010101")) + tlv(5), bytes.fromhex("2a8648ce3d0201")
CURVES = {  # the algorithm -> type, bits
    tlv(6, EC) + tlv(6, bytes.fromhex("2a8648ce3d030107")): ("ec-p256", 256),
    tlv(6, EC) + tlv(6, bytes.fromhex("2b81040022")): ("ec-p384", 384)}
COMMON_NAME, SUBJECT_ALT_NAME = bytes.fromhex("550403"), bytes.fromhex("551d11")
EXTENSION_REQUEST = bytes.fromhex("2a864886f70d01090e")


def public_key(text):
    """The SubjectPublicKeyInfo (DER bytes) of a private key in PEM (str).

    PKCS#1 (RFC 8017), which old RSA keys come in, and PKCS#8 (RFC 5958) are read here, which is
    quicker; all else is left to openssl. Raises ValueError, ToolError.
    """
    if "ENCRYPTED" in text:
        raise ValueError("it needs a passphrase")
    label, key = pem(text)[0] if "-----BEGIN" in text else ("", b"")
    algorithm = RSA
    if label == "PRIVATE KEY":
        _, (_, algorithm), (_, key), *_ = inside(key)
    if label in ("PRIVATE KEY", "RSA PRIVATE KEY"):
        if algorithm == RSA:
            _, modulus, exponent, *_ = inside(key)
            public = tlv(0x30, tlv(*modulus), tlv(*exponent))
            return tlv(0x30, tlv(0x30, algorithm), tlv(3, b"\0", public))
        public = dict(inside(key)).get(0xa1) if algorithm in CURVES else None
        if public:
            return tlv(0x30, tlv(0x30, algorithm), public)
    return openssl("pkey", "-pubout", "-outform", "DER", stdin=text.encode())


def key_kind(spki):
    """(type, bits) of a SubjectPublicKeyInfo (DER bytes; RFC 5280 section 4.1.2.7): ("rsa", 3072),
    ("ec-p256", 256), ...; ("another", 0) for what is not supported. Raises ValueError."""
    (_, algorithm), (_, key) = inside(spki)
    if algorithm == RSA:
        (_, modulus), _ = inside(key[1:])
        return "rsa", int.from_bytes(modulus, "big").bit_length()
    return CURVES.get(algorithm, ("another", 0))


def extension_names(extensions):
    """The names (list of str) in the subjectAltName, critical or not, of Extensions (DER bytes;
    RFC 5280 section 4.2.1.6); what is no DNS name begins with its tag in brackets. Raises
    ValueError, IndexError."""
    return [name.decode("ascii", "backslashreplace").lower() if tag == 0x82
            else "[%d]%s" % (tag & 0x1f, name.hex())
            for _, item in inside(extensions) if der(item)[0][1] == SUBJECT_ALT_NAME
            for tag, name in inside(der(item)[-1][1])]


def der_time(tag, body):
    """Seconds since 1970 (int) of a UTCTime or GeneralizedTime (tag: int, body: bytes; RFC 5280
    section 4.1.2.5). Raises ValueError."""
    text = body.decode("ascii")
    text = text if tag != 0x17 else ("19" if text >= "50" else "20") + text
    match = re.match("([0-9]{4})" + 5 * "([0-9]{2})" + r"Z\Z", text)
    if match:
        year, month, day, hour, minute, second = map(int, match.groups())
        # How many leap days there were before this year, and are with it; the length of each month
        before, after = [last // 4 - last // 100 + last // 400 for last in (year - 1, year)]
        months = (0, 31, 28 + after - before, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
        if year and 1 <= month <= 12 and 1 <= day <= months[month] and (
                hour < 24 and minute < 60 and second < 60):
            days = (year - 1) * 365 + before + sum(months[:month]) + day - 719163  # since 1970
            return days * 86400 + hour * 3600 + minute * 60 + second
    raise ValueError("its dates are not as RFC 5280 says")


def parse_certificate(data):
    """What matters of a certificate in DER bytes (RFC 5280 section 4.1): names (list of str),
    not_before and not_after (seconds since 1970), spki, issuer and subject (DER bytes). Raises
    ValueError."""
    try:
        fields = der(inside(data)[0][1])
        issuer, validity, subject, spki, *rest = fields[3 if fields[0][0] == 0xa0 else 2:]
        names = [name for tag, body in rest if tag == 0xa3 for name in extension_names(body)]
        start, end = [der_time(*item) for item in der(validity[1])]
        return types.SimpleNamespace(names=names, not_before=start, not_after=end,
                                     spki=tlv(*spki), issuer=issuer[1], subject=subject[1])
    except IndexError as error:
        raise ValueError("it is no X.509 certificate: %s" % error)


def parse_csr(data):
    """(names, spki) of a PKCS#10 request in DER bytes (RFC 2986 section 4): the common name's and
    the subjectAltName's DNS names (list of str), its public key (DER bytes). Raises ValueError."""
    try:
        _, subject, spki, attributes = der(inside(data)[0][1])[:4]
        pairs = [der(pair) for _, rdn in der(subject[1]) for _, pair in der(rdn)]
        names = [value.decode("utf-8", "replace").lower() for (_, oid), (_, value) in pairs
                 if oid == COMMON_NAME]
        for (_, oid), (_, values) in [der(item) for _, item in der(attributes[1])]:
            names += extension_names(values) if oid == EXTENSION_REQUEST else []
        return [n for n in dict.fromkeys(names) if not n.startswith("[")], tlv(*spki)
    except (IndexError, ValueError) as error:
        raise ValueError("this is no certificate request: %s" % error)


def check_chain(text, spki, names, now):
    """The chain in text (PEM str, RFC 8555 section 9.1), written anew from its blocks, if it is
    what was asked for: it will be installed as it is.

    spki: DER bytes of our public key; names: list of str; now: seconds since 1970.
    Raises AcmeError.
    """
    import ssl
    try:
        blocks = pem(text)
        chain = [parse_certificate(data) for _, data in blocks]
    except ValueError as error:
        raise AcmeError("the CA's answer is no chain of certificates: %s" % error)
    leaf = chain[0]
    for wrong, why in (
            (any(label != "CERTIFICATE" for label, _ in blocks), "holds what is no certificate"),
            (leaf.spki != spki, "is for another key"),
            (set(leaf.names) != set(map(str.lower, names)), "is for other names (%s)" % (
                printable(", ".join(leaf.names)))),
            (leaf.not_before > now + 3600 or leaf.not_after <= now, "is not valid now, but from %s "
             "to %s: is the clock right?" % (utc(leaf.not_before), utc(leaf.not_after))),
            (any(one.issuer != above.subject for one, above in zip(chain, chain[1:])),
             "came with a chain in which one did not issue the one before")):
        require(not wrong, "the CA's certificate is not used: it %s", why)
    return "".join(ssl.DER_cert_to_PEM_cert(data) for _, data in blocks)


class AccountKey:
    """An ACME account key in a PEM file: RSA of 2048 bits or more, P-256 or P-384.

    jwk (dict, RFC 7517), thumbprint (str, RFC 7638), alg (str, RFC 7518). The private key stays
    in its file: openssl signs. Raises ToolError, AcmeError, OSError.
    """

    def __init__(self, path):
        import hashlib, json
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                spki = public_key(file.read())
            kind, bits = key_kind(spki)
            body, size = inside(spki)[1][1][1:], bits // 8
            if kind == "rsa" and bits >= 2048:
                n, e = [b64(number.lstrip(b"\0")) for _, number in inside(body)]
                self.alg, self.jwk, size = "RS256", {"e": e, "kty": "RSA", "n": n}, 0
            elif (kind, bits) in CURVES.values() and len(body) == 2 * size + 1:
                self.alg, self.jwk = "ES%d" % bits, {"crv": "P-%d" % bits, "kty": "EC", "x": b64(
                    body[1:size + 1]), "y": b64(body[size + 1:])}
            else:
                raise ValueError("CAs take RSA of 2048 bits or more, P-256 or P-384")
        except (FileNotFoundError, ToolError):
            openssl("rsa", "-in", path, "-noout")  # its words are what acme-tiny's users know
            raise
        except ValueError as error:
            raise AcmeError("%s is no account key that can be used: %s" % (path, error))
        self.path, self.size = path, size  # of a number in a signature in bytes, 0 with RSA
        canonical = json.dumps(self.jwk, sort_keys=True, separators=(",", ":"))
        self.thumbprint = b64(hashlib.sha256(canonical.encode()).digest())

    def sign(self, data):
        """The signature (bytes) of data (bytes) for a JWS: ECDSA as r and s (RFC 7518 section 3.4).
        Raises ToolError."""
        made = openssl("dgst", "-sha" + self.alg[2:], "-sign", self.path, stdin=data)
        if not self.size:
            return made
        return b"".join(number.lstrip(b"\0").rjust(self.size, b"\0") for _, number in inside(made))


# ---- https --------------------------------------------------------------------------------------


# What a server answered: status (int), headers (email.message.Message), body (bytes)
Reply = namedtuple("Reply", "status headers body")


def opener_of(*handlers):
    """A urllib opener that can do only what these handlers (urllib's) do: no ftp, no files."""
    from urllib.request import OpenerDirector
    opener = OpenerDirector()
    opener.lost = 0  # answers for which a request was sent once more
    opener.addheaders = [("User-Agent", "letsencrypt-tiny/" + __version__),
                         ("Accept-Language", "en")]
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def https_opener(ca_bundle=None, proxy=None):
    """A urllib opener for https only, without redirects, that keeps its connections open.

    ca_bundle: path or None (the system's, or SSL_CERT_FILE); proxy: URL or None (https_proxy
    and no_proxy from the environment). Raises OSError for a bundle that cannot be read.
    """
    import ssl, urllib.request
    from http.client import BadStatusLine, HTTPSConnection, ImproperConnectionState

    class Socket(ssl.SSLSocket):  # a read timeout alone lets a drip of bytes go on for ever
        __del__ = ssl.SSLSocket.close

        def recv_into(self, *args):
            self.settimeout(max(0.001, self.context.deadline - time.monotonic()))
            return super().recv_into(*args)

    class Handler(urllib.request.HTTPSHandler):
        connections = {}

        def https_open(self, req):
            context.deadline = time.monotonic() + REQUEST_SECONDS
            headers = dict(req.unredirected_hdrs, **req.headers)
            hop = {name: headers.pop(name) for name in list(headers) if name.startswith("Proxy-")}
            # A server may have several addresses, of which the first need not answer
            connection = self.connections.setdefault((req.host, req._tunnel_host), HTTPSConnection(
                req.host, timeout=REQUEST_SECONDS / 3, context=context))
            if req._tunnel_host and connection.sock is None:
                connection.set_tunnel(req._tunnel_host, headers=hop)
            for kept in (connection.sock is not None, False):
                try:
                    if kept:
                        connection.sock.settimeout(REQUEST_SECONDS)
                    connection.request(req.get_method(), req.selector, req.data, headers)
                    return connection.getresponse()
                except BaseException as error:
                    connection.close()  # once more if the server had closed it meanwhile
                    if not kept or not isinstance(error, gone):
                        raise
                    self.parent.lost += 1

    # What a connection looks like that the server closed, or whose last answer was not read
    gone = ConnectionError, ssl.SSLError, BadStatusLine, ImproperConnectionState
    context = ssl.create_default_context(cafile=ca_bundle)
    context.sslsocket_class = Socket
    return opener_of(urllib.request.ProxyHandler({"https": proxy} if proxy else None),
                     Handler(context=context))


def http_date(text):
    """Seconds since 1970 (float) of an HTTP-date (str; RFC 9110 section 5.6.7), or None."""
    from datetime import timezone
    from email.utils import parsedate_to_datetime
    try:
        return parsedate_to_datetime(text).replace(tzinfo=timezone.utc).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def retry_after(headers):
    """Seconds (int) that Retry-After in the headers of a Reply (RFC 9110 section 10.2.3) asks for,
    None if it is missing or makes no sense."""
    value = (headers.get("Retry-After") or "").strip()
    if re.match(r"[0-9]+\Z", value):
        return int(value[:4000])  # Python reads no longer ones
    until, now = http_date(value), http_date(headers.get("Date")) or time.time()
    return None if until is None else max(0, int(until - now))


def parse_json(reply, **kinds):
    """The JSON object (dict) in a Reply whose members are of these kinds (name=type), at least.
    Raises AcmeError."""
    import json
    try:
        value = probe = json.loads(reply.body.decode("utf-8"))
        for _ in range(99):  # what can just be read may be nested too deeply to be shown
            probe = [probe]
        str(probe)
    except (ValueError, RecursionError):
        value = None
    found = value if isinstance(value, dict) else {}
    wrong = [name for name in kinds if not isinstance(found.get(name), kinds[name])]
    usable = "".join(" with a usable '%s'" % name for name in wrong[:1])
    require(found is value and not wrong, "the CA's answer is no JSON object%s: %s", usable,
            printable(reply.body.decode("utf-8", "replace"), 200))
    return value


def problem_text(problem):
    """A problem document (RFC 7807, RFC 8555 section 6.7; any JSON) as one line of text."""
    if not isinstance(problem, dict):
        return printable(problem)
    who, parts = problem.get("identifier"), [problem.get("type"), problem.get("detail")]
    parts.insert(0, who.get("value") if isinstance(who, dict) else who)
    if isinstance(problem.get("subproblems"), list):
        parts += [problem_text({**sub, "subproblems": None, "instance": None})
                  for sub in problem["subproblems"] if isinstance(sub, dict)]
    parts.append(problem.get("instance"))
    return printable(": ".join(printable(p) for p in parts if p), 2000) or "no reason given"


# ---- The protocol -------------------------------------------------------------------------------


class Client:
    """One account at one ACME server (RFC 8555).

    url: the directory's; key: AccountKey; account: its URL if it is known; contact: list of URLs;
    log: called with a text. Every method raises AcmeError for whatever the CA's answers cause,
    and ToolError if openssl cannot sign.
    skew: seconds that the CA's clock is ahead of ours, None before the first answer.
    """

    def __init__(self, url, key=None, account=None, contact=None, ca_bundle=None, proxy=None,
                 log=lambda text: None):
        self.url, self.key, self.account, self.contact = url, key, account, contact
        self.opener, self.log = https_opener(ca_bundle, proxy), log
        self.nonce = self.skew = self.links = None

    def fetch(self, what, url, body=None, method=None):
        """The CA's Reply to one request. what: what is being done (str), for errors; body: bytes of
        a JWS, or None; method: HEAD, or None for GET without a body and POST with one."""
        from urllib.request import Request
        good = url.lower().startswith("https://")
        require(good, "%s: the CA names an address that is not https: %s", what, url)
        headers = {} if body is None else {"Content-Type": "application/jose+json"}
        try:
            response = self.opener.open(Request(url, body, headers, method=method))
            reply = Reply(response.status, response.headers, response.read(ANSWER_BYTES + 1))
            if len(reply.body) > ANSWER_BYTES or response.length:
                raise ValueError("the answer was cut short, or has over %d bytes" % ANSWER_BYTES)
        except Exception as error:  # whatever a hostile URL or answer makes Python raise
            raise AcmeError("%s: no usable answer from %s: %s" % (
                what, printable(url), printable(str(error) or type(error).__name__)))
        self.nonce = reply.headers.get("Replay-Nonce") or self.nonce
        date = http_date(reply.headers.get("Date"))
        self.skew = self.skew if date is None else date - time.time()
        if 200 <= reply.status < 300:
            return reply
        try:
            problem = parse_json(reply)
        except AcmeError:
            problem = {"detail": printable(reply.body.decode("utf-8", "replace").strip(), 200)}
        raise AcmeError("%s: the CA refused (%d): %s (%s)" % (
            what, reply.status, problem_text(problem), printable(url)), reply.status,
            str(problem.get("type") or "").rpartition(":")[2],
            retry_after(reply.headers) if reply.status in (429, 503) else None)

    def directory(self, name):
        """The URL (str) of a resource (its name there) in the directory (section 7.1.1), which is
        asked for once."""
        if self.links is None:
            self.log("Getting directory...")
            self.links = parse_json(self.fetch("getting the directory", self.url), newNonce=str,
                                    newAccount=str, newOrder=str)
            self.log("Directory found!")
        return self.links[name]

    def post(self, what, url, payload=None):
        """The Reply to a signed request (section 6.2) with a payload (for JSON), without one
        POST-as-GET (6.3). A refused nonce (6.5) costs another try. what: as in fetch()."""
        import json
        text = "" if payload is None else json.dumps(payload)
        lost = self.opener.lost
        for left in reversed(range(NONCES)):
            if not self.nonce:
                self.fetch("getting a nonce", self.directory("newNonce"), method="HEAD")
            head = {"kid": self.account} if self.account else {"jwk": self.key.jwk}
            head.update(alg=self.key.alg, nonce=self.nonce, url=url)
            protected, body = b64(json.dumps(head).encode()), b64(text.encode())
            signature = b64(self.key.sign(("%s.%s" % (protected, body)).encode()))
            jws = json.dumps({"protected": protected, "payload": body, "signature": signature})
            self.nonce = None
            try:
                return self.fetch(what, url, jws.encode())
            except AcmeError as error:
                # A request whose answer is lost each time may have been obeyed each time
                if error.type != "badNonce" or not left or self.opener.lost > lost + 2:
                    raise

    def register(self):
        """Make the account, or find it by its key (sections 7.3, 7.3.1); sets .account."""
        self.account, url = None, self.directory("newAccount")
        self.log("Registering account...")
        terms = {"termsOfServiceAgreed": True}
        contact = {} if self.contact is None else {"contact": self.contact}
        try:
            reply = self.post("registering", url, {**terms, **contact})
        except AcmeError as error:
            if not contact or error.status != 400 and "Contact" not in error.type:
                raise
            self.log("The CA does not take the contact: %s" % error)
            reply, contact = self.post("registering", url, terms), {}
        self.account, new = location(reply), reply.status == 201
        self.log("%s Account ID: %s" % ("Registered!" if new else "Already registered!",
                                        printable(self.account)))
        try:
            if contact and reply.status == 200:
                self.post("updating the contact", self.account, contact)
            if contact:  # Let's Encrypt shows none in its answer
                self.log("Updated contact details:\n" + "\n".join(self.contact))
        except AcmeError as error:
            if error.retry_after is not None:
                raise
            self.log(str(error))  # it is optional: some CAs forget it, or refuse

    def new_order(self, names):
        """The Reply that holds an order for names (list of str), section 7.4."""
        payload = {"identifiers": [{"type": "dns", "value": name} for name in names]}
        what = "ordering for %s" % ", ".join(names)
        for known in (self.account is not None, False):
            if not self.account:
                self.register()
            self.log("Creating new order...")
            try:
                return self.post(what, self.directory("newOrder"), payload)
            except AcmeError as error:
                # Servers word an unknown account in many ways; to register again does no harm.
                if not known or error.status not in (400, 401, 403, 404, 500) or error.type not in (
                        "", "accountDoesNotExist", "malformed", "unauthorized", "serverInternal"):
                    raise
                self.account = None

    def obtain(self, names, csr, spki, solver):
        """The checked chain (PEM str) for names (list of str) and a CSR (DER bytes) whose public
        key is spki (DER bytes), by the challenges that solver (HttpFiles) puts in place and removes
        (sections 7.4, 7.4.2)."""
        reply = self.new_order(names)
        order, url, todo = parse_json(reply, status=str), location(reply), []
        self.log("Order created!")
        for name in names if order["status"] == "ready" else ():
            self.log("Already verified: %s, skipping..." % name)
        try:
            if order["status"] == "pending":
                todo = self.authorize(names, parse_json(reply, authorizations=list), solver)
                order = self.poll(url, order, None, ("pending",), todo)
        finally:
            solver.remove()
        for name, _ in todo:
            self.log("%s verified!" % name)
        self.log("Signing certificate...")
        for _ in range(2):
            busy, finalize = ("pending", "processing"), str(order.get("finalize"))
            if order["status"] == "ready":
                try:
                    reply = self.post("finalizing the order", finalize, {"csr": b64(csr)})
                    order, busy = {**order, **parse_json(reply, status=str)}, busy + ("ready",)
                except AcmeError as error:
                    if error.type != "orderNotReady":  # not yet; or it is done: an answer was lost
                        raise
                    reply, order = None, dict(order, status="pending")
            order = self.poll(url, order, reply, busy, [])
        require(order["status"] == "valid", "Order failed for %s: it is %s: %s", ", ".join(names),
                order["status"], problem_text(order.get("error") or {}))
        reply = self.post("downloading the certificate", str(order.get("certificate")))
        text = check_chain(reply.body.decode("ascii", "replace"), spki, names, time.time())
        self.log("Certificate signed!")
        return text

    def authorize(self, names, order, solver):
        """Have solver put in place a challenge for each of the names (list of str) that the order
        (dict) wants validated, then tell the CA of all (sections 7.5, 7.5.1, 8).

        Returns [(name, authorization URL)] of what the CA now validates.
        """
        tasks, links, left = [], [], {name.lower() for name in names}
        for url in order["authorizations"]:
            reply = self.post("asking for an authorization", str(url))
            found = parse_json(reply, identifier=dict, status=str, challenges=list)
            name = str(found["identifier"].get("value")).lower()
            name = "*." + name if found.get("wildcard") is True else name
            require(name in left, "the CA wants an authorization for %s, which was not asked for, "
                    "or twice", name)
            left.remove(name)
            if found["status"] == "valid":
                self.log("Already verified: %s, skipping..." % name)
                continue
            fits = [c for c in found["challenges"] if isinstance(c, dict)
                    and c.get("type") == solver.kind and isinstance(c.get("url"), str)]
            token = fits[0].get("token") if fits else None
            good = isinstance(token, str) and re.match(r"[A-Za-z0-9_-]{1,200}\Z", token)
            require(good and found["status"] == "pending",
                    "%s cannot be verified: its authorization is %s, and its %s challenge %s",
                    name, found["status"], solver.kind, fits[0] if fits else "is missing")
            tasks.append((name, token, "%s.%s" % (token, self.key.thumbprint)))
            links.append((name, fits[0]["url"], url))
        solver.present(tasks)
        for name, challenge, _ in links:
            self.log("Verifying %s..." % name)
            self.post("asking the CA to verify %s" % name, challenge, {})
        return [(name, url) for name, _, url in links]

    def poll(self, url, order, reply, busy, todo):
        """The order (dict) once its status is not in busy (section 7.4), asked for when
        Retry-After says, else at once, after 50 ms, 100 ms ... 5 s, for POLL_SECONDS at most.

        Some CAs leave the order pending when a validation failed, so authorizations are looked at
        (todo: [(name, URL)]) when it takes long.
        """
        deadline, pause, left = time.monotonic() + POLL_SECONDS, 0, list(todo)
        while order["status"] in busy and time.monotonic() < deadline - 0.1:
            hint = retry_after(reply.headers) if reply else None
            wait = pause if hint is None else max(0.5, hint)
            time.sleep(max(0, min(wait, deadline - time.monotonic())))
            reply = self.post("asking for the order", url)
            order = {**order, **parse_json(reply, status=str)}  # some CAs say things only once
            if max(pause, wait) > 0.5 and order["status"] in busy:
                self.look(left, False)
            pause = min(5, pause * 2 or 0.05)
        if order["status"] in busy or order["status"] == "invalid":
            self.look(left, True)
        names = ", ".join(name for name, _ in left)
        require(order["status"] not in busy, "the order is still %s after %s seconds%s: try again "
                "later", order["status"], POLL_SECONDS, names and " (not verified: %s)" % names)
        return order

    def look(self, left, everything):
        """Raise AcmeError if an authorization in left ([(name, URL)]) failed; drop the valid
        ones. Unless everything is asked for, stop at the first that is still pending."""
        failed = []
        for name, url in list(left):
            reply = self.post("asking for the authorization of %s" % name, url)
            found = parse_json(reply, status=str, challenges=list)
            errors = "; ".join(problem_text(challenge["error"]) for challenge in found["challenges"]
                               if isinstance(challenge, dict) and challenge.get("error"))
            if found["status"] == "valid":
                left.remove((name, url))
            elif found["status"] != "pending" or errors:
                errors = errors or "its authorization is %s" % printable(found["status"])
                failed.append("Challenge did not pass for %s: %s" % (name, errors))
            elif not everything:
                break
        if failed:
            raise AcmeError("; ".join(failed))


def location(reply):
    """The Location header (str) of a Reply: the URL of an account or order (RFC 8555 sections 7.3,
    7.4). Raises AcmeError."""
    require(reply.headers.get("Location"), "the CA's answer has no Location header")
    return reply.headers["Location"]


# ---- http-01 ------------------------------------------------------------------------------------


class HttpFiles:
    """Solves http-01 (RFC 8555 section 8.3) by files in a folder that a web server serves.

    check: is each file fetched as the CA will, before the CA is told ("no"; "warn": trouble is
    told what is wrong; "require": AcmeError); port: for that (int or str; None: 80); note(paths):
    called with the files before they are made; trouble(text): told of files that stay behind, too.
    """
    kind = "http-01"

    def __init__(self, folder, check="no", port=None, note=lambda paths: None,
                 trouble=lambda text: None):
        self.folder, self.check, self.port, self.paths = folder, check, port, []
        self.note, self.trouble = note, trouble

    def present(self, tasks):
        """Write the files for tasks: [(name, token, key authorization)], and check them.
        Raises ToolError, AcmeError."""
        self.paths = paths = [os.path.join(self.folder, token) for _, token, _ in tasks]
        self.note(list(paths))
        try:
            for path, (_, _, text) in zip(paths, tasks):
                if os.path.lexists(path):
                    os.unlink(path)
                # O_EXCL: the web server's user may be able to plant a link here
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
                with open(fd, "wb") as file:
                    os.fchmod(fd, 0o644)
                    file.write(text.encode())
        except OSError as error:
            raise ToolError("cannot write the challenge file %s: %s" % (path, error.strerror))
        end, port = time.monotonic() + CHECK_SECONDS, ":%s" % self.port if self.port else ""
        for path, (name, token, text) in zip(paths, tasks if self.check != "no" else ()):
            url = "http://%s%s/.well-known/acme-challenge/%s" % (name, port, token)
            wrong = self_check(url, text, max(1, end - time.monotonic()))
            if wrong:
                wrong = "Wrote file to %s, but couldn't download %s: %s" % (path, url, wrong)
                require(self.check == "warn", "%s", wrong)
                self.trouble(wrong)

    def remove(self):
        """Remove the files; what cannot be removed is only told, and stays in .paths."""
        for path in list(self.paths):
            try:
                if os.path.lexists(path):
                    os.unlink(path)
                self.paths.remove(path)
            except OSError as error:
                self.trouble("cannot remove %s: %s" % (path, error.strerror))


def self_check(url, text, seconds):
    """Fetch what must be text (str) from an http URL as a CA does (RFC 8555 section 8.3): redirects
    followed without a look at TLS certificates, no proxy. Returns "", or what is wrong (str), after
    so many seconds (float) and one more at the latest."""
    import socket, ssl, threading, urllib.request as web
    context, found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ["no answer in %d seconds" % seconds]
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = opener_of(web.HTTPHandler(), web.HTTPSHandler(context=context), web.UnknownHandler(),
                       web.HTTPRedirectHandler(), web.HTTPErrorProcessor(),
                       web.HTTPDefaultErrorHandler())

    def look():
        address = "no address"
        try:
            host = web.Request(url).host.partition(":")[0]
            known = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
            address = " ".join(dict.fromkeys(info[4][0] for info in known))
            with opener.open(url, timeout=seconds) as answer:
                body = answer.read(1000).decode("utf-8", "replace").strip()
            found[0] = "" if body == text else "%s: it is another text" % address
        except Exception as error:  # whatever a strange answer makes Python raise
            found[0] = "%s: %s" % (address, printable(str(error) or type(error).__name__))

    thread = threading.Thread(target=look, daemon=True)  # a drip of bytes may go on for ever
    thread.start()
    thread.join(seconds + 1)
    return found[0]


# ---- As acme-tiny 5.0.3 -------------------------------------------------------------------------


def get_crt(account_key, csr, acme_dir, log=None, CA=DEFAULT_CA, disable_check=False,
            directory_url=DEFAULT_DIRECTORY_URL, contact=None, check_port=None):
    """The signed chain (PEM str) for a CSR, as acme-tiny 5.0.3 does it.

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
        raise ToolError("Error loading %s: %s" % (csr, error))
    names, spki = parse_csr(request)
    log.info("Found domains: %s" % ", ".join(names))
    url = CA + "/directory" if CA != DEFAULT_CA else directory_url
    check = "no" if disable_check else "require"
    solver = HttpFiles(acme_dir, check, check_port, trouble=log.info)
    return Client(url, key, contact=contact, log=log.info).obtain(names, request, spki, solver)


def main(argv=None):
    """The command line of acme-tiny 5.0.3: the chain on stdout, the log on stderr.

    argv: list of str. Raises what get_crt() raises.
    """
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
        sys.exit("acme_tiny: %s" % error)
