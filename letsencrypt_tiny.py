#!/usr/bin/python3 -IS
"""letsencrypt-tiny: a line of certificates, for services that publish TLSA records (DANE)."""
# A *line* is a sequence of certificates, each the successor of the one before, possibly for another
# private key. Services always use its tip, KEYS/live.key and CERTS/live.crt. A plain renewal keeps
# the key, so DNS stays as it is. When the key grows old, its successor is staged: it gets its
# certificate, both keys are published in DNS, and only when no cache can still hold the old records
# does it become live:
#
#     live.key too old -> staging.key -> staging.crt -> post-keychange -> wait -> live.key, live.crt
#
# Every run looks at what IS (Facts), asks RULES what is due (decide), does the first of it (Run),
# and looks again. So a crash, a full disk or a broken hook needs no code of its own: the next run
# goes on. The rooms of this file, in reading order; each uses only those above it:
#
#     words     every sentence that is told again and again     terminal
#     config    what the administrator wants                    reads the config
#     facts     what is there                                   reads files
#     rules     what is to be done                              touches nothing
#     DNS       what resolvers, servers and services show       network, writes nothing
#     hooks     run what the administrator wrote                other programs
#     proofs    of names, by DNS                                network, hooks
#     child     what talks to the network, as another user      the other process
#     files     the only code that writes                       files
#     run       does it, one method a verb                      all of the above
#     commands  the command line                                terminal, signals
import fcntl, json, os, re, signal, stat, sys, time
from collections import namedtuple

try:
    sys.path.append(os.path.dirname(os.path.realpath(__file__)))  # python3 -I leaves it out
    from acme_tiny import (DEFAULT_DIRECTORY_URL, AccountKey, AcmeError, Client, HttpFiles,
                           MacKey, OrderFailed, Solver, Stateless, ToolError, UNBOUND, b64,
                           certificates, check_chain, identifiers, is_address, key_kind, make_csr,
                           member, name_text, openssl, parse_certificate, parse_csr, pem, printable,
                           public_key, renewal_id, self_check, tls_context, token_of, unb64, utc,
                           within)
except ImportError:
    sys.exit("letsencrypt-tiny: copy acme_tiny.py beside this file, or use the single file")

__version__ = "1.2.1"
HOUR, DAY = 3600, 86400
# After failed requests; not quite a day, so that a daily cron job never comes a second too early
RETRY_SECONDS = 0, 60, 600, 6000, DAY - 600
LOOK_SECONDS = DAY - HOUR      # what is right is looked at, and what is wrong is told, once a day
RETRY_AFTER_SECONDS = 8 * DAY  # the longest that a server can keep us away
CLOCK_SECONDS = HOUR           # what the CA's clock and ours may differ by
LOCK_SECONDS = 10
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

# ---- Words: touches the terminal ----------------------------------------------------------------

# What a Step does, when it is done; and how it is announced as long as it lies ahead
TEXTS = {
    "drop": "Removing '{staging}.{what}'", "discard": "Moving '{staging}.{what}' to the backups",
    "rename": "Making '{staging}.{what}' live", "unstage": "Making '{staging}' live",
    "request": "Obtaining certificate '{pair}' for {names}", "hook": "Running {what}",
    "stage": "Making a new private key '{staging}' ({key_type})", "look": "Looking at {what}",
    "publish": "Starting the staging time of '{staging}'", "watch": "Looking at {what}"}
COMING = {"request": "'{pair}' is renewed", "stage": "a new key is made",
          "unstage": "'{staging}' goes live", "watch": "{what} is looked at"}
LOOKS = {"clock": "the CA's clock", "dns": "DNS", "served": "the services",
         "ari": "when the CA wants a renewal"}


class Problem(Exception):
    """What the administrator is told in one line; status: the exit status."""

    def __init__(self, text: str, status: int = 1):
        super().__init__(text)
        self.status = status


class Stopped(BaseException):
    """A signal asks us to end; its number is args[0]."""


deaf = set()  # file descriptors that nobody reads


def emit(fd: int, text: str):
    """Write lines to a file descriptor, fit for a terminal whatever is in them; a closed, full or
    stuck one never stops us."""
    import select
    lines, poll = [printable(line, 10**6) for line in f"{text}\n".split("\n")], select.poll()
    data = "\n".join(lines).encode("utf-8", "backslashreplace")
    poll.register(fd, select.POLLOUT)
    try:
        while data and fd not in deaf:
            if poll.poll(5000) != [(fd, select.POLLOUT)]:
                raise OSError
            data = data[os.write(fd, data[:4096]):]
    except OSError:
        deaf.add(fd)


def protocol_log(verbose: bool):
    """A function that tells a step of the protocol on stderr, with the seconds since the one
    before; unless verbose only at what there is to wait for, and to a terminal."""
    before = [time.monotonic()]

    def log(text):
        now = time.monotonic()
        if verbose:
            emit(2, f"{text} ({now - before[0]:.2f} s)")
        elif text.startswith(("Verifying", "Signing", "Waiting")) and os.isatty(2):
            emit(2, text)
        before[0] = now

    return log


def say(text: str):
    """Tell on stdout what is done."""
    emit(1, text)


def complain(file: str, text: str):
    """Tell on stderr what is wrong with the line of this config file."""
    emit(2, f"letsencrypt-tiny: {file}: {text}")


def reason(error: BaseException) -> str:
    """The words of an exception for people."""
    named = isinstance(error, OSError) and error.strerror
    return f"{error.filename or 'the system'}: {error.strerror}" if named else str(error)


# ---- Config: reads the config file --------------------------------------------------------------


def host_name(name: str) -> str:
    """A host name of A-labels in lower case, without a trailing dot. Raises ValueError."""
    name = name.lower()[:-1] if name.endswith(".") else name.lower()
    if not re.match(r"(?=.{1,253}\Z)((?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!\Z)|\Z))+\Z", name) or (
            name.rpartition(".")[2].isdigit()):
        raise ValueError(name + ("" if name.isascii() else ": write its A-label (xn--...)"))
    return name


def certificate_name(name: str) -> str:
    """What a certificate may be for: a host_name(), *. and a host name, or an address, as RFC 5952
    has it. Raises ValueError."""
    if is_address(name):
        import ipaddress
        return str(ipaddress.ip_address(name))
    return "*." + host_name(name[2:]) if name.startswith("*.") else host_name(name)


def certificate_names(text: str) -> list:
    """The words of a text as certificate_name(), 1 to 100 without duplicates. Raises ValueError."""
    names = list(dict.fromkeys(map(certificate_name, text.split())))
    if not 0 < len(names) <= 100:
        raise ValueError(f"{len(names)} names")
    return names


def path(text: str) -> str:
    """An absolute path without a trailing slash. Raises ValueError."""
    if not text.startswith("/") or not text.isprintable():
        raise ValueError(text)
    return "/" + "/".join(filter(None, text.split("/")))


def matching(pattern: str, many: bool = False):
    """A reader of one word (str), or of many (list of str), that match a regular expression, in
    which a group named port is a port. The reader raises ValueError."""
    def read(text):
        words = text.split()
        found = [re.match(f"({pattern})\\Z", word) for word in words]
        if not all(found) or not words or not many and len(words) > 1 or any(
                int(match.groupdict().get("port") or 1) not in range(1, 65536) for match in found):
            raise ValueError(text)
        return words if many else words[0]
    return read


def mail_urls(text: str) -> list:
    """Mail addresses as mailto URLs. Raises ValueError."""
    words = matching(r"(mailto:)?[^@?#]+@[^@?#]+", True)(text.replace(",", " "))
    return [word if word.startswith("mailto:") else "mailto:" + word for word in words]


def servers(text: str) -> list:
    """DNS servers as address or address@port. Raises ValueError, OSError."""
    import socket
    for word in matching(r"[0-9A-Fa-f.:]+(%\w+)?(@(?P<port>[0-9]{1,5}))?", True)(text):
        address = re.split("[%@]", word)[0]
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return text.split()


def number(low: float, high: float, kind: type = float):
    """A reader of a number of a kind from low to high. The reader raises ValueError."""
    def read(text):
        if not low <= kind(text) <= high:
            raise ValueError(text)
        return kind(text)
    read.__name__ = "number"  # as argparse calls it
    return read


PATH, PREFIX = "an absolute path", matching(r"[^./][^/]*")
OPTIONS = (  # key, default (... if it is required), what is expected, reader
    ("domains", ..., "1 to 100 host names, *.host names or addresses", certificate_names),
    ("key-type", None, "rsa, ec-p256 or ec-p384", matching("rsa|ec-p256|ec-p384")),
    ("key-length", None, "bits of an RSA key, 2048 to 4096", number(2048, 4096, int)),
    ("max-key-age-days", ..., "days, above 0, at most 36500", number(1e-9, 36500)),
    ("staging-hours", 0.0, "hours, 0 to 87600", number(0, 87600)),
    ("renew-cert-before-expiry-days", None, "days, above 0, at most 36500", number(1e-9, 36500)),
    ("post-certchange", None, PATH + " of a program", path),
    ("post-keychange", None, PATH + " of a program", path),
    ("hook-timeout", 600.0, "seconds, above 0, at most 86400", number(1e-9, DAY)),
    ("account-key", ..., PATH, path),
    ("challenge", "http-01", "http-01, stateless, dns-01 or dns-persist-01",
     matching("http-01|stateless|dns-01|dns-persist-01")),
    ("challenge-dir", None, PATH, path),
    ("challenge-hook", None, PATH + " of a program", path),
    ("propagation-seconds", 120.0, "seconds, 0 to 86400", number(0, DAY)),
    ("certs", ..., PATH, path),
    ("keys", ..., PATH, path),
    ("backups", ..., PATH, path),
    ("live", "live", "a file name prefix", PREFIX),
    ("staging", None, "a file name prefix", PREFIX),
    ("directory-url", DEFAULT_DIRECTORY_URL, "an https URL", matching("https://[!-~]+")),
    ("ca-bundle", None, PATH, path),
    ("contact", None, "mail addresses", mail_urls),
    ("profile", None, "the name of a profile", matching("[!-~]+")),
    ("preferred-chain", None, "the common name of an issuer", str),
    ("eab-kid", None, "the id of a key for external accounts", matching("[!-~]+")),
    ("eab-hmac-key", None, PATH, path),
    ("proxy", None, "an http URL such as http://proxy.example.org:3128 (Python cannot talk TLS to "
     "a proxy)", matching("http://[!-~]+")),
    ("self-check", "warn", "no, warn or require", matching("no|warn|require")),
    ("run-as", None, "a user's name", matching("[A-Za-z0-9_.][A-Za-z0-9_.-]*")),
    ("standby", "no", "yes or no", matching("yes|no")),
    ("tlsa", None, "names such as _25._tcp.mx.example.org",
     matching(r"(_(?P<port>[0-9]{1,5})\._(tcp|udp|sctp)|_(?![0-9]+\.|[^.]+\._)[A-Za-z0-9_-]{1,62})"
              r"(\.[A-Za-z0-9_-]{1,63})+\.?", True)),
    ("dns-resolver", None, "an address, or address@port",
     lambda text: servers(matching(".*")(text))[0]),
    ("dns-servers", None, "addresses, or address@port", servers),
    ("served", None, "host:port, host:port/smtp, name@host:port/xmpp and the like", matching(
        r"([A-Za-z0-9._-]+@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?)"
        r":(?P<port>[0-9]{1,5})"
        r"(/([ls]mtp|imap|pop3|sieve|ldap|xmpp(-server)?|nntp|ftp|irc|mysql|postgres))?", True)),
)
Config = namedtuple("Config", [row[0].replace("-", "_") for row in OPTIONS] + ["file"])
Pair = namedtuple("Pair", "name key crt")  # its prefix, and the paths of its files


class Line:
    """The files of a config's line: live, staging (Pairs), state, lock; temp: where a copy for the
    backups is made."""

    def __init__(self, config: Config):
        self.config = config
        self.live, self.staging = [
            Pair(name, f"{config.keys}/{name}.key", f"{config.certs}/{name}.crt")
            for name in (config.live, config.staging)]
        self.state = f"{config.certs}/{config.live}.state"
        self.lock = f"{config.keys}/{config.live}.lock"
        self.temp = f"{config.backups}/{config.live}.tmp"


def read_ini(text: str) -> dict:
    """The keys and values in an INI text; sections are for its reader. Raises Problem (2)."""
    import configparser
    # A section for what stands before the first one; and a name of its own for each
    text, count, found = "[ ]\n" + text, iter(range(len(text) + 1)), {}
    text = re.sub(r"(?m)^\[.*\][ \t]*$", lambda match: f"[{next(count)}]", text)
    parser = configparser.ConfigParser(interpolation=None, default_section="", delimiters="=:")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        at = getattr(error, "lineno", 0) or error.errors[0][0]
        twice = "expected key = value" if hasattr(error, "errors") else "it is given twice"
        raise Problem(f"line {at - 1}: {printable(text.splitlines()[at - 1].strip())}: {twice}", 2)
    for key, value in [item for section in parser.values() for item in section.items()]:
        if key in found:
            raise Problem(f"{printable(key)} is given twice", 2)
        found[key] = value
    return found


def read_config(file: str) -> Config:
    """The Config in a file. Raises Problem: status 2 for a wrong text, else OSError."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            found = read_ini(stream.read())
    except UnicodeError:
        raise Problem("it is no UTF-8 text", 2)
    values, known = {}, [row[0] for row in OPTIONS]
    for key in [key for key in found if key not in known]:
        import difflib
        near = [f"; did you mean {near}?" for near in difflib.get_close_matches(key, known, 1, 0.5)]
        raise Problem(f"unknown key {printable(key)}{''.join(near)}", 2)
    for key, default, expected, read in OPTIONS:
        try:
            if found.get(key) == "":
                raise ValueError("it is empty")
            value = values[key.replace("-", "_")] = read(found[key]) if key in found else default
        except (ValueError, OverflowError, OSError) as error:
            raise Problem(f"{key}: expected {expected}: {printable(error)}", 2)
        if value is ...:
            raise Problem(f"{key} is missing: expected {expected}", 2)
    if not values["staging"]:  # lines that share folders must not share a staged key
        values["staging"] = "staging" if values["live"] == "live" else values["live"] + ".staging"
    return check_config(Config(file=file, **values))


def check_config(config: Config) -> Config:
    """The Config, if its options go together. Raises Problem (status 2)."""
    line, hooks = Line(config), config.post_certchange or config.served
    by_dns = config.challenge in ("dns-01", "dns-persist-01")
    for wrong, text in (
            (config.challenge == "http-01" and not config.challenge_dir,
             f"challenge-dir is missing: expected {PATH}"),
            (config.challenge == "dns-01" and not config.challenge_hook,
             f"challenge-hook is missing: expected {PATH} of a program"),
            (not by_dns and any("*" in name for name in config.domains),
             f"domains: expected host names (wildcards need challenge = dns-01): "
             f"{' '.join(config.domains)}"),
            (by_dns and any(map(is_address, config.domains)),
             f"domains: addresses need challenge = http-01: {' '.join(config.domains)}"),
            (bool(config.eab_kid) != bool(config.eab_hmac_key),
             "eab-kid and eab-hmac-key go together"),
            (config.key_length and config.key_type not in (None, "rsa"),
             f"key-length is for RSA keys: leave it out with {config.key_type}"),
            (len({line.live.key, line.staging.key, config.account_key}) < 3,
             "live, staging and account-key must be different files"),
            (config.tlsa and not config.staging_hours, "staging-hours must be above 0 with tlsa: a "
             "new key that goes live at once fits no TLSA record that caches hold"),
            (config.tlsa and config.post_keychange and not hooks, "tlsa with post-keychange needs "
             "post-certchange or served: who else tells when no service uses the old key?")):
        if wrong:
            raise Problem(text, 2)
    return config


def check_edited(config: Config):
    """Raise Problem (status 2) if Let's Encrypt is to be asked for names that are there for
    examples only (RFC 2606): the config is a sample."""
    for name in config.domains if "letsencrypt.org/" in config.directory_url else ():
        if re.search(r"(\A|\.)example(\.(org|com|net))?\Z", name):
            raise Problem(f"domains: {name} is only an example: write the names of your server", 2)


def check_owner(what: str, file: str):
    """As root, refuse a file (absolute path) that others could change, or a folder or link on the
    way to it. what: its key in the config. Raises Problem."""
    parts = file.split("/")
    for count in range(1, len(parts) + 1) if not os.geteuid() else ():
        part = "/".join(parts[:count]) or "/"
        try:
            info = os.lstat(part)
            link, sticky = stat.S_ISLNK(info.st_mode), info.st_mode & stat.S_ISVTX
            if link:
                os.stat(part)  # it may lead to nothing, or to itself
        except OSError as error:
            raise Problem(f"{what}: {reason(error)}")
        others = stat.S_IWOTH | (stat.S_IWGRP if info.st_gid else 0)
        if info.st_uid or info.st_mode & others and not link and not sticky:
            raise Problem(f"{what}: {part} must be owned by root and writable by nobody else, as "
                          "root runs this: chown root, chmod go-w")
        if link:
            check_owner(what, os.path.join(os.path.realpath(os.path.dirname(part)),
                                           os.readlink(part)))


# ---- Facts: reads the files of the line ---------------------------------------------------------

# spki: SHA-256 of the public key (hex), as in a TLSA record 3 1 1, "" if it is no key; kind: then
# what is wrong; made: the time of its file (seconds since 1970); sha512: as in 3 1 2
Key = namedtuple("Key", "spki kind bits made sha512", defaults=("",))
# not_before, not_after: seconds since 1970; spki: its leaf's, "" if it is no certificate; sha256:
# of the file; leaf: SHA-256 of the leaf; issuer: its name; self_issued: is that its own; made: the
# time of its file; chain: how many certificates there are; serial: in hex
Crt = namedtuple("Crt", "names not_before not_after spki sha256 leaf issuer self_issued made chain "
                        "serial", defaults=("", "", False, 0, 2, ""))
# state: the notes; now: seconds since 1970 by the CA's clock once it was asked; clock: by ours;
# force: what is done though it is not due (init, renew, new-key, now); hooks: may they run; done,
# failed: what this run did, and could not do (sets of tuples); looks: what it found (need -> list
# of what is wrong)
Facts = namedtuple("Facts", "live_key live_crt staging_key staging_crt state now clock force hooks "
                            "done failed looks",
                   defaults=(0, 0, "", True, frozenset(), frozenset(), {}))

# The notes: what cannot be read off the disk. Each says what it is about, so that none is ever
# reset: it only grows outdated. 0.0: a number, None: anything, [""]: a list and {"": 0.0}: a dict
# of such.
STATE = {
    "config": "",      # the file of this line's config
    "certchange": "",  # SHA-256 of the live.crt for which post-certchange last exited 0
    "keychange": {"keys": [""], "at": 0.0},  # keys_of() when post-keychange last exited 0
    # asked: names and servers; found: place -> since when it has the keys, or 0; ttl: the largest
    # (-1: not known); until: when no cache holds records of an earlier TTL any more; fits: the keys
    # that it was last found to fit; outage: the part of wrong that keeps clients away
    "dns": {"keys": [""], "asked": [""], "found": {"": 0.0}, "ttl": 0.0, "until": 0.0,
            "fits": [""], "wrong": [""], "outage": [""], "at": 0.0},
    "served": {"key": "", "services": [""], "wrong": [""], "at": 0.0},
    "account": {"directory": "", "url": "", "thumbprint": "", "contact": None},
    "issued": {"": ""},  # SHA-256 of a leaf -> directory of the CA that gave it
    # crts: those that were there; server: the HTTP status with which the CA said when, or 0
    "retry": {"names": [""], "directory": "", "crts": [""], "count": 0, "after": 0.0, "server": 0,
              "error": ""},
    # which was finalized; crt: the leaf that it replaces; tries: how often it was gone on with
    "order": {"url": "", "key": "", "names": [""], "directory": "", "crt": "", "tries": 0},
    "challenges": [""],  # files to remove if we die
    "records": [[""]],   # TXT records (name, token, value) to have removed if we die
    # the CA's window for a renewal of a leaf (crt), the time picked in it (0: none), when to ask
    # again
    "ari": {"crt": "", "directory": "", "start": 0.0, "end": 0.0, "when": 0.0, "until": 0.0,
            "url": ""},
    "told": {"": {"text": "", "at": 0.0}}}


def sha256(data: bytes) -> str:
    """SHA-256 of data in hex."""
    import hashlib
    return hashlib.sha256(data).hexdigest()


def read_file(file: str):
    """The bytes of a file, None if there is none. Raises OSError."""
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def read_key(file: str):
    """The Key in a PEM file, None if there is none. Raises OSError."""
    import hashlib
    data = read_file(file)
    if data is None:
        return None
    made = os.stat(file).st_mtime
    try:
        spki = public_key(data.decode("ascii", "replace"))
        return Key(sha256(spki), *key_kind(spki), made, hashlib.sha512(spki).hexdigest())
    except (ValueError, ToolError) as error:
        return Key("", str(error), 0, made)


def read_crt(file: str):
    """The Crt in a PEM file, None if there is none; one that is no certificate fits no key.
    Raises OSError."""
    data = read_file(file)
    if data is None:
        return None
    try:
        found = certificates(data)
        leaf = parse_certificate(found[0])
        return Crt(tuple(leaf.names), leaf.not_before, leaf.not_after, sha256(leaf.spki),
                   sha256(data), sha256(found[0]), name_text(leaf.issuer),
                   leaf.issuer == leaf.subject, os.stat(file).st_mtime, len(found),
                   leaf.serial.lstrip(b"\0").hex())
    except ValueError:
        return Crt((), 0, 0, "", sha256(data))


def alike(value, shape) -> bool:
    """Is a value from a JSON text of this shape (as in STATE)?"""
    if isinstance(shape, dict) and isinstance(value, dict):
        names = value if "" in shape else shape
        return all(alike(value.get(name), shape.get(name, shape.get(""))) for name in names)
    if shape and isinstance(shape, list) and isinstance(value, list):
        return all(alike(item, shape[0]) for item in value)
    return shape is None or type(value) is type(shape) or shape == 0.0 and type(value) is int


def read_state(line: Line) -> dict:
    """The notes (as STATE). What is lost or strange is left out: at worst, hooks run once more and
    clocks start anew."""
    try:
        found = dict(json.loads(read_file(line.state) or b"{}"))
    except (OSError, ValueError, TypeError, RecursionError):
        found = {}
    state = {name: found[name] for name in STATE if alike(found.get(name), STATE[name])}
    if not all(re.match(r"[A-Za-z0-9_-]+\Z", os.path.basename(file)) and os.path.dirname(
            file) == line.config.challenge_dir for file in state.get("challenges", ())):
        del state["challenges"]  # they would be removed
    if not all(len(record) == 3 for record in state.get("records", ())):
        del state["records"]
    return state


def fit(key: Key, crt: Crt) -> bool:
    """Is the certificate for the key? (Either may be None.)"""
    return bool(key and crt and key.spki and crt.spki == key.spki)


def has_pair(facts: Facts) -> bool:
    """Is there a staged key with its certificate?"""
    return fit(facts.staging_key, facts.staging_crt)


def keys_of(facts: Facts) -> list:
    """The digests [live, staging or ""] of the keys that are to be in DNS (RFC 7671 section 8.1:
    both); a key counts once certified."""
    return [facts.live_key.spki, facts.staging_key.spki if has_pair(facts) else ""]


# ---- Rules: touches nothing ---------------------------------------------------------------------

# verb and what: as in Run.do_*(); why: for people; when: since or from when it is due (seconds
# since 1970); needs: what must be known to be good first, in this order (see found())
Step = namedtuple("Step", "verb what why when needs", defaults=("", "", 0, ()))
# step: what to do now, or None; held: [(Step that is due, need, what is wrong)]; later: [Step]
Plan = namedtuple("Plan", "step held later")
MENDED_BY = {"dns": "post-keychange", "served": "post-certchange"}
# A need -> what is looked at for it, if not itself
LOOKED_AT = {"time": "clock", "ttl": "dns", "fit": "dns"}
HOPELESS = {"once": "it was obtained just now: is the clock right, is the CA?",
            "post-certchange": "post-certchange comes first"}


def decide(config: Config, facts: Facts) -> Plan:
    """The Plan for these facts; pure. The first rule whose Step is due and whose needs are met
    wins: the order of RULES makes it safe."""
    held, later = [], []
    for rule in RULES:
        step = rule(config, facts)
        if step and step.when > facts.now:
            later.append(step)
        elif step:
            need, wrong = hindrance(config, facts, step)
            if wrong is None:
                looking = Step("look", LOOKED_AT.get(need, need), step.why, step.when)
                return Plan(looking, held, later)
            if wrong and mends(config, facts, need):
                again = Step("hook", MENDED_BY[need], wrong[0], step.when)
                return Plan(again, held, later)
            if wrong:
                held.append((step, need, wrong))
            elif step.verb != "watch":  # which but looks
                return Plan(step, held, later)
    return Plan(None, held, later)


def hindrance(config: Config, facts: Facts, step: Step) -> tuple:
    """(need, what is wrong with it) of the first need of a Step that is not met, as found();
    ("", []) if all are."""
    # Of a look, too: what it saw could not be noted, and another one might not see that any more
    for deed in [(step.verb, step.what)] + [
            ("look", LOOKED_AT.get(need, need)) for need in step.needs]:
        if deed in facts.failed:
            return "failed", ["it failed in this run"]
    for need in step.needs:
        wrong = found(config, facts, need)
        if wrong is None or wrong:
            return need, wrong
    return "", []


def mends(config: Config, facts: Facts, need: str) -> bool:
    """May a hook that is not owed be run again, once a run, to mend what is wrong?"""
    hook = MENDED_BY.get(need)
    owed = services_lack_certificate(config, facts) or hook == "post-keychange" and dns_lacks_keys(
        config, facts)
    done = facts.failed | facts.done
    return bool(hook and facts.hooks and option(config, hook) and not owed
                and ("hook", hook) not in done and ("hook", hook, facts.live_key.spki) not in done)


def found(config: Config, facts: Facts, need: str):
    """What is wrong (list of str) with what a Step needs; None if that must be looked at first."""
    until = blocked_until(config, facts)
    blocked = [f"the last request failed ({facts.state['retry']['error']}), the next is made from "
               f"{utc(until)}"] if until else []
    if need == "-k":
        return [] if facts.hooks else ["it runs with -k only"]
    if need in HOPELESS:
        return [HOPELESS[need]]
    if need == "retry":
        return blocked
    if need == "time":  # whatever the CA says, or does not say
        return [] if blocked or "clock" in facts.looks else None
    if need == "clock" and blocked and "clock" not in facts.looks:
        return blocked
    if need == "fit" and (("fit", "") in facts.done or known_to_fit(config, facts)):
        return []
    return facts.looks.get(need)


def known_to_fit(config: Config, facts: Facts) -> bool:
    """Did DNS have the live key when it was last looked at? As long as it was not live then, this
    says nothing of names that are new since."""
    dns, spki = facts.state.get("dns", {"fits": []}), facts.live_key.spki
    return spki in dns["fits"] and (dns["asked"] == asked(config) or dns["keys"][:1] == [spki])


def option(config: Config, key: str):
    """The value of a key of the config."""
    return getattr(config, key.replace("-", "_"))


def blocked_until(config: Config, facts: Facts) -> float:
    """Until when (seconds since 1970) no request is allowed after a failure; 0 if one is."""
    retry = facts.state.get("retry")
    if not retry or retry["directory"] != config.directory_url:
        return 0
    # Who asks by hand waits for no pause of ours, once
    by_hand = facts.force in ("renew", "new-key", "now") and not any(
        done[0] == "request" for done in facts.failed)
    if retry["server"] != 429 and (by_hand or not (
            retry["server"] or is_about(config, facts, retry))):
        return 0
    longest = RETRY_AFTER_SECONDS if retry["server"] else DAY
    return retry["after"] if facts.clock < retry["after"] <= facts.clock + longest else 0


def is_about(config: Config, facts: Facts, retry: dict) -> bool:
    """Is a note of a failed request about what would be requested now?"""
    return {**retry, **subject(config, facts)} == retry


def subject(config: Config, facts: Facts) -> dict:
    """What a request is about, for its note."""
    return {"names": config.domains, "directory": config.directory_url, "crts": leaves(facts)}


def leaves(facts: Facts) -> list:
    """The certificates that are there (SHA-256 of each leaf, or "")."""
    return [crt.leaf if crt else "" for crt in (facts.live_crt, facts.staging_crt)]


# What a crash, a power cut or a person left

def staged_copy_of_live_key(config: Config, facts: Facts):
    """The Step that ends a rollover whose first rename was a link."""
    if facts.staging_key and facts.staging_key.spki == facts.live_key.spki:
        return Step("drop", "key", "it is the live key")


def only_key_went_live(config: Config, facts: Facts):
    """The Step after a crash between the two renames of a pair that goes live."""
    if not facts.staging_key and fit(facts.live_key, facts.staging_crt) and not fit(
            facts.live_key, facts.live_crt):
        return Step("rename", "crt", "it has the live key")


def staged_crt_without_key(config: Config, facts: Facts):
    """The Step that puts away a staged certificate that nothing can use."""
    if facts.staging_crt and not facts.staging_key and not only_key_went_live(config, facts):
        return Step("discard", "crt", "there is no key for it")


def only_crt_went_live(config: Config, facts: Facts):
    """The Step after a power cut that only the second rename of a pair outlived."""
    if fit(facts.staging_key, facts.live_crt) and not fit(facts.live_key, facts.live_crt):
        return Step("rename", "key", "live.crt has it")


def staging_key_unusable(config: Config, facts: Facts):
    """The Step that puts away a staged key that must not go live: nothing uses it yet."""
    key = facts.staging_key
    if key and not key.spki:
        return Step("discard", "key", f"it is no private key that can be used ({key.kind})")
    if key and not of_wanted_type(config, facts.live_key, key):
        words = words_of(key.kind, key.bits)
        return Step("discard", "key", f"it is {words}, which the config does not ask for")


# Certificates and keys

def live_certificate(config: Config, facts: Facts):
    """The Step that requests a certificate for the live key."""
    return certificate(config, facts, "live", facts.live_key, facts.live_crt)


def staged_certificate(config: Config, facts: Facts):
    """The Step that requests a certificate for the staged key."""
    if facts.staging_key and facts.staging_key.spki:
        return certificate(config, facts, "staging", facts.staging_key, facts.staging_crt)


def certificate(config: Config, facts: Facts, which: str, key: Key, crt: Crt) -> Step:
    """The Step that requests a certificate for a key that has this one, or none."""
    when, why = 0, wrong_certificate(config, facts, key, crt)
    if not why:
        when, why = renewal_time(config, crt), f"it ends {utc(crt.not_after)}"
        wanted = wanted_time(config, facts) if which == "live" else None
        if wanted and wanted - DAY < when:  # for the next run may be a day from now
            when, why = wanted - DAY, f"the CA wants it renewed {utc(wanted)}"
        # By a clock that has jumped ahead since; else it would be so again tomorrow, and on
        ended = crt.not_after <= facts.clock and crt.made < crt.not_after
        when = min(when, facts.now) if ended else when
        if facts.force == "renew" and ("request", key.spki) not in facts.done and (
                when > facts.now):
            when, why = 0, "asked for"
    if ("request", key.spki) in facts.done:
        return Step("request", which, why, when, ("once",))
    # The CA's clock tells what is due by a date
    return Step("request", which, why, when, ("retry", "time") if when else ("retry",))


def wanted_time(config: Config, facts: Facts):
    """When (seconds since 1970) the CA wants the live certificate renewed, or None. One that this
    run obtained does not count: a CA that is never content is asked for one a run."""
    note, crt = facts.state.get("ari"), facts.live_crt
    known = note and (note["crt"], note["directory"]) == (crt.leaf, config.directory_url)
    return note["when"] if known and ("request", crt.spki) not in facts.done else None


def ca_may_want_renewal(config: Config, facts: Facts):
    """The Step that asks the CA when it wants the live certificate renewed (RFC 9773). There is a
    note of any earlier certificate if the CA tells that at all."""
    note, crt = facts.state.get("ari"), facts.live_crt
    ours = note and fit(facts.live_key, crt) and (
        note["directory"] == config.directory_url == giver(config, facts, crt))
    if ours and not blocked_until(config, facts):
        known = note["crt"] == crt.leaf and note["until"] <= facts.now + DAY + CLOCK_SECONDS
        return Step("watch", "ari", "it may change its mind", note["until"] * known, ("ari",))


def wrong_certificate(config: Config, facts: Facts, key: Key, crt: Crt) -> str:
    """Why a certificate must be replaced whatever the time, "" if it need not."""
    source = giver(config, facts, crt) if crt else config.directory_url
    return next((why for wrong, why in (
        (crt is None, "there is none"),
        (not fit(key, crt), "there is none for this key"),
        (crt and set(crt.names) != set(config.domains), "it has other names"),
        (crt and crt.self_issued, "it was issued by itself, not by a CA"),
        (source != config.directory_url, f"it is from another CA ({source})")) if wrong), "")


def giver(config: Config, facts: Facts, crt: Crt) -> str:
    """The directory of the CA that gave a certificate: of one that is not noted, today's."""
    return facts.state.get("issued", {}).get(crt.leaf, config.directory_url)


def renewal_time(config: Config, crt: Crt) -> float:
    """When (seconds since 1970) a certificate is to be renewed: a third of its life before it ends,
    half if it lives less than 10 days; the configured days, but at most half its life."""
    life = crt.not_after - crt.not_before
    ahead = life / 2 if life < 10 * DAY else life / 3
    days = config.renew_cert_before_expiry_days
    return crt.not_after - (min(days * DAY, life / 2) if days else ahead)


def wanted_type(config: Config, live: Key) -> str:
    """The type of key that the line must have: only a configured one ever makes a new key."""
    usable = live.kind in ("rsa", "ec-p256", "ec-p384")
    return config.key_type or (live.kind if usable else "ec-p256")


def of_wanted_type(config: Config, live: Key, key: Key) -> bool:
    """Is a key of the line as the config wants it?"""
    enough = key.bits == config.key_length if config.key_length else key.bits >= 2048
    return key.kind == wanted_type(config, live) and (key.kind != "rsa" or enough)


def words_of(kind: str, bits: int) -> str:
    """A key's type for people."""
    return f"{kind} with {bits} bits" if bits else kind


def new_key(config: Config, facts: Facts):
    """The Step that makes the next private key."""
    key, when = facts.live_key, old_time(config, facts)
    why = f"the live key is {(facts.now - key.made) / DAY:.0f} days old"
    if facts.staging_key or facts.done & {("stage", ""), ("unstage", "")}:
        return None
    if not of_wanted_type(config, key, key):
        when, why = 0, f"the live key is {words_of(key.kind, key.bits)}"
    elif facts.now < when and facts.force in ("new-key", "now"):
        when, why = 0, "asked for"
    elif facts.now < when and config.standby == "yes":
        when, why = 0, "it stands by"
    return Step("stage", "", why, when, () if facts.force == "now" else ("clock",))


def old_time(config: Config, facts: Facts) -> float:
    """When (seconds since 1970) the live key is too old; one from the future is as of now."""
    return min(facts.live_key.made, facts.now) + config.max_key_age_days * DAY


# Hooks: never while the live files do not fit each other

def services_lack_certificate(config: Config, facts: Facts):
    """The Step that has services load the live certificate."""
    if config.post_certchange and fit(facts.live_key, facts.live_crt) and (
            facts.state.get("certchange") != facts.live_crt.sha256):
        return Step("hook", "post-certchange", "it is owed", 0, ("-k", *fit_first(config, facts)))


def fit_first(config: Config, facts: Facts) -> tuple:
    """What is needed before a hook lets a live key be used: that DNS does not hold another's."""
    return ("fit",) if config.tlsa and facts.force != "now" else ()


def dns_lacks_keys(config: Config, facts: Facts):
    """The Step that brings the keys that are on disk into DNS."""
    if not config.post_keychange or not fit(facts.live_key, facts.live_crt) or (
            published_since(facts) is not None):
        return None
    pair = has_pair(facts)
    needs = [need for need, applies in (
        ("-k", True),
        ("post-certchange", services_lack_certificate(config, facts)),
        ("fit", fit_first(config, facts)),
        ("ttl", pair and config.tlsa),
        ("clock", pair and config.staging_hours and facts.force != "now"),
        ("served", config.served and may_take_out(facts))) if applies]
    return Step("hook", "post-keychange", "it is owed", 0, needs)


def published_since(facts: Facts):
    """Since when (seconds since 1970) post-keychange is done for the keys on disk, or None."""
    note = facts.state.get("keychange")
    done = note and note["keys"] == keys_of(facts) and (past(facts, note) or not has_pair(facts))
    return note["at"] if done else None


def past(facts: Facts, note: dict) -> bool:
    """Is the time of a note none that lies ahead, as by a clock that was wrong?"""
    return 0 <= note["at"] <= facts.now + CLOCK_SECONDS


def may_take_out(facts: Facts) -> bool:
    """Might post-keychange take a key out of DNS that a service uses?"""
    note = facts.state.get("keychange")
    return ("key", "") not in facts.done if note is None else bool(
        set(note["keys"]) - {*keys_of(facts), ""})


def must_hold(config: Config, facts: Facts) -> list:
    """The digests that DNS must hold now: of the keys on disk, and after a switch of the old key as
    long as a service may use it (RFC 7671 section 8.1)."""
    served, keys = facts.state.get("served"), [key for key in keys_of(facts) if key]
    left = services_lack_certificate(config, facts) is None
    if config.served:
        good = {"key": facts.live_key.spki, "services": config.served, "wrong": []}
        left = served and {**served, **good} == served
    dns, note = [facts.state.get(name, {"keys": [], "fits": []}) for name in ("dns", "keychange")]
    before = {*note["keys"], *dns["keys"], *dns["fits"]} - {*keys, ""}
    return keys if left else keys + sorted(before)


def shown_keys(config: Config, facts: Facts) -> list:
    """[(file name prefix, digest as in 3 1 1, as in 3 1 2)] of keys_of(), the live one first."""
    pairs = (config.live, facts.live_key), (config.staging, has_pair(facts) and facts.staging_key)
    return [(name, key.spki, key.sha512) for name, key in pairs if key]


# Going live

def live_at_once(config: Config, facts: Facts):
    """The Step that makes a staged pair live without a staging time."""
    if has_pair(facts) and facts.force == "now" and facts.now < facts.staging_crt.not_after:
        due = safe_time(config, facts)
        early = config.staging_hours and (due is None or facts.now < due)
        return Step("unstage", "", "asked for" + (
            " (until the old TLSA records are out of all caches, who has them refuses it)"
            if early else ""))
    if not config.staging_hours and ready(config, facts):
        when = turn_time(config, facts)
        return Step("unstage", "", "there is no staging time", when, ("clock",))


def live_later(config: Config, facts: Facts):
    """The Step that makes a staged pair live, or starts its time."""
    since = published_since(facts)
    if not config.staging_hours or not ready(config, facts) or config.post_keychange and (
            since is None):
        return None
    if since is None and not config.tlsa:
        return Step("publish", "", "its pair is there", 0, ("clock",))
    when, needs = live_time(config, facts), ("clock", "dns") if config.tlsa else ("clock",)
    return when and Step("unstage", "", "the staging time is over", when, needs)


def ready(config: Config, facts: Facts) -> bool:
    """Is there a staged pair whose certificate is not due?"""
    return has_pair(facts) and staged_certificate(config, facts).when > facts.now


def live_time(config: Config, facts: Facts):
    """When (seconds since 1970) a staged pair is to go live; None if it is not yet published."""
    when = safe_time(config, facts)
    return when and max(when, turn_time(config, facts))


def turn_time(config: Config, facts: Facts) -> float:
    """When (seconds since 1970) it is a staged pair's turn: at once, unless it stands by."""
    return old_time(config, facts) if config.standby == "yes" else 0


def safe_time(config: Config, facts: Facts):
    """When (seconds since 1970) a staged pair may go live; None if it is not yet published. All who
    could have fetched the records of before must have forgotten them (RFC 7671 section 8.1)."""
    since, dns = published_since(facts), facts.state.get("dns", {"ttl": 0, "until": 0})
    seen = seen_since(config, facts) if config.tlsa else since
    if seen is None or config.post_keychange and since is None:
        return None
    if not config.tlsa:
        return seen + config.staging_hours * HOUR
    return max(dns["until"], max(seen, since or 0) + max(config.staging_hours * HOUR,
                                                         2 * dns["ttl"]))


def seen_since(config: Config, facts: Facts):
    """Since when (seconds since 1970) all names and servers were seen to have both keys that are on
    disk, or None."""
    dns = facts.state.get("dns")
    if not dns or dns["wrong"] or (dns["keys"], dns["asked"]) != (keys_of(facts), asked(config)):
        return None
    since = list(dns["found"].values())
    return max(since) if past(facts, dns) and since and all(since) else None


def asked(config: Config) -> list:
    """What a look at DNS is about."""
    return [*config.tlsa, config.dns_resolver or "", *(config.dns_servers or ())]


# What DNS must hold and services must use is looked at in each run with a staged key, else daily

def dns_as_it_must_be(config: Config, facts: Facts):
    """The Step that looks whether DNS holds the keys in use."""
    if config.tlsa and fit(facts.live_key, facts.live_crt):
        when = next_look(facts, "dns", keys=keys_of(facts), asked=asked(config))
        needs = ("time", "dns") if has_pair(facts) else ("dns",)  # for a staging time starts
        return Step("watch", "dns", "it must hold the keys in use", when, needs)


def services_as_they_must_be(config: Config, facts: Facts):
    """The Step that looks whether services use the live key."""
    if config.served and fit(facts.live_key, facts.live_crt) and (
            services_lack_certificate(config, facts) is None):
        when = next_look(facts, "served", key=facts.live_key.spki, services=config.served)
        return Step("watch", "served", "they must use the live key", when, ("served",))


def next_look(facts: Facts, name: str, **about) -> float:
    """When (seconds since 1970) to look again, by the note of the last look if that was about
    this."""
    note = facts.state.get(name)
    if has_pair(facts):
        return min(facts.now, published_since(facts) or facts.staging_key.made)
    good = note and past(facts, note) and {**note, **about, "wrong": []} == note
    return note["at"] + LOOK_SECONDS if good else 0


RULES = (staged_copy_of_live_key, only_key_went_live, staged_crt_without_key, only_crt_went_live,
         staging_key_unusable, ca_may_want_renewal, live_certificate, staged_certificate, new_key,
         live_at_once, services_lack_certificate, dns_lacks_keys, live_later,
         services_as_they_must_be, dns_as_it_must_be)


def text_of(config: Config, step: Step, facts: Facts) -> str:
    """What a Step does, for people; of one that lies ahead, what will happen."""
    texts = COMING if step.when > facts.now else TEXTS
    pair = config.staging if step.what == "staging" else config.live
    return texts[step.verb].format(
        pair=pair, staging=config.staging, names=", ".join(config.domains),
        what=LOOKS.get(step.what, step.what), key_type=wanted_type(config, facts.live_key))


# ---- DNS and services: asks the network, writes nothing -----------------------------------------

A, NS, CNAME, SOA, MX, TXT, AAAA, TLSA = 1, 2, 5, 6, 15, 16, 28, 52
RECORDS = {A: "A", NS: "NS", SOA: "SOA", MX: "MX", TXT: "TXT", AAAA: "AAAA", TLSA: "TLSA"}
# Flags of questions: RD with AD (RFC 6840 section 5.7), RD with CD, none for a zone's own servers
VALIDATED, ANY, OWN = b"\x01\x20", b"\x01\x10", b"\0\0"
DNS_SECONDS = 2  # to connect to a server, and again for all of its answer
# authentic: AD; authoritative: AA; records, authority: [(owner, type, TTL in seconds, data)], where
# data is bytes, or a name (str) for NS, CNAME and MX
Answer = namedtuple("Answer", "code authentic authoritative records authority")
# wrong: what keeps the keys from being published for all; outage: what of it keeps clients away
# from services now; found: {place: are the keys on disk there? None: no answer}; ttl: the largest
# of the records (seconds; -1: no telling); foreign: where there are records, but none for the live
# key; stale, brittle: records at the zone's own servers of other keys,
# and such as the next renewal breaks. Lists of texts, but for found and ttl
Look = namedtuple("Look", "wrong outage found ttl foreign stale brittle")


def dns_name(message: bytes, at: int) -> tuple:
    """(name, offset behind it) of the name at an offset in a DNS message (RFC 1035 section 4.1.4).
    Raises ValueError, IndexError."""
    labels, end = [], None
    for _ in range(128):
        size = message[at]
        if size >= 0xc0:
            end, at = end or at + 2, (size & 0x3f) << 8 | message[at + 1]
        elif size:
            label = message[at + 1:at + 1 + size].decode("ascii", "backslashreplace").lower()
            labels.append(printable(label))
            at += 1 + size
        else:
            return ".".join(labels), end or at + 1
    raise ValueError("a DNS name without end")


def dns_parse(message: bytes) -> Answer:
    """The Answer in a DNS message of 12 bytes or more (RFC 1035 section 4). Raises ValueError,
    IndexError."""
    flags, *counts = [int.from_bytes(message[i:i + 2], "big") for i in (2, 4, 6, 8)]
    at, parts = 12, []
    for _ in range(counts[0]):
        at = dns_name(message, at)[1] + 4
    for count in counts[1:]:
        parts.append([])
        for _ in range(count):
            owner, at = dns_name(message, at)
            kind, ttl, size = [int.from_bytes(message[at + i:at + j], "big")
                               for i, j in ((0, 2), (4, 8), (8, 10))]
            ttl = 0 if ttl >> 31 else ttl  # RFC 2181 section 8
            at += 10 + size
            start = at - size + (2 if kind == MX else 0)  # its preference
            data = message[start:at]
            if kind in (NS, CNAME, MX):
                data = dns_name(message, start)[0]
            parts[-1].append((owner, kind, ttl, data))
    if at > len(message):
        raise ValueError("a DNS answer is cut short")
    return Answer(flags & 15, bool(flags & 0x20), bool(flags & 0x400), *parts)


def dns_send(server: str, query: bytes) -> bytes:
    """The message that a server (address, or address@port) sends to a query by TCP (RFC 7766):
    nobody can forge that blindly, and nothing is cut short. Raises OSError."""
    import socket
    address, _, port = server.partition("@")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(DNS_SECONDS)
        sock.connect((address, int(port or 53)))
        sock.sendall(len(query).to_bytes(2, "big") + query)
        data, end = b"", time.monotonic() + DNS_SECONDS
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
            sock.settimeout(max(0.01, end - time.monotonic()))
            more = sock.recv(4096)
            if not more:
                raise ConnectionError("it breaks off")
            data += more
        return data[2:]


def dns_ask(server: str, name: str, kind: int, flags: bytes) -> Answer:
    """The Answer of a server (address, or address@port) to one question: the records of a kind of a
    name (RFC 1035 section 4.1.2). flags: VALIDATED, ANY or OWN.
    Raises ValueError if there is no Answer after two tries, OSError if there is no route."""
    import socket
    labels = [label.encode() for label in name.split(".") if label]
    question = b"".join(bytes([len(label)]) + label for label in labels) + bytes([0, 0, kind, 0, 1])
    asked, error = f"{RECORDS[kind]} of {name}", "nonsense"
    for _ in range(2):
        query = os.urandom(2) + flags + bytes([0, 1, 0, 0, 0, 0, 0, 0]) + question
        try:
            message = dns_send(server, query)
            echo = message[:2] + message[12:12 + len(question)].lower()
            if echo == query[:2] + question.lower() and message[2] & 0x80:
                answer = dns_parse(message)
                if answer.code in (0, 3):
                    return answer
                error = {2: "SERVFAIL: is the zone bogus?", 5: "it refuses, error 5"}.get(
                    answer.code, f"error {answer.code}")
        except (socket.timeout, ConnectionError, IndexError, ValueError) as failure:
            error = f"{failure}, by TCP"
        except OSError as failure:
            raise OSError(failure.errno, f"{failure.strerror} ({asked})", server)
    raise ValueError(f"{server} does not answer ({asked}: {error})")


def dns_resolvers(config: Config) -> list:
    """The resolvers to ask (address, or address@port), one after the other: as configured, else
    those of resolv.conf."""
    known = re.findall(r"(?m)^\s*nameserver\s+([0-9A-Fa-f.:]+(?:%\w+)?)\s*$", (
        read_file("/etc/resolv.conf") or b"").decode("ascii", "replace"))
    return [config.dns_resolver] if config.dns_resolver else known or ["127.0.0.1"]


def dns_find(config: Config, name: str, kind: int, flags: bytes = ANY) -> tuple:
    """(resolver, its Answer) of the first resolver that answers. flags: by default whether it is
    validated or not, for a hook may have to mend the zone. Raises ValueError, OSError."""
    *others, last = dns_resolvers(config)
    for server in others:
        try:
            return server, dns_ask(server, name, kind, flags)
        except (ValueError, OSError):
            pass  # as every program on this machine, ask the next one
    return last, dns_ask(last, name, kind, flags)


def dns_resolve(config: Config, name: str, kind: int) -> Answer:
    """The validated Answer of the resolver. Raises ValueError if there is none, or one that is not
    to be believed, OSError."""
    server, answer = dns_find(config, name, kind, VALIDATED)
    wrong = distrust(config, server, answer)
    if wrong:
        raise ValueError(f"the answer of the resolver {server} ({RECORDS[kind]} of {name}) is not "
                         f"validated: it {wrong}")
    return answer


def distrust(config: Config, server: str, answer: Answer) -> str:
    """Why an Answer of a resolver is not to be believed; "" if it is."""
    near = config.dns_resolver or re.match(r"127\.|::1(@|\Z)", server)
    if answer.authentic and near or answer.authoritative and config.dns_resolver:
        return ""
    if not near:
        return "is not on this machine: name it as dns-resolver if you trust it"
    return ("has AA, but no AD: name it as dns-resolver if it is the zone's own"
            if answer.authoritative else
            "has neither AD nor AA: is the zone signed, does it validate?")


def dns_follow(answer: Answer, name: str, kind: int) -> tuple:
    """(owner, TTL, [data]) of the records of a kind that an Answer has for a name, behind its
    CNAMEs (RFC 1034 section 3.6.2). TTL: the largest (seconds), theirs too."""
    ttl, owner = 0, name.rstrip(".").lower()
    for _ in answer.records:
        for some, sort, seconds, data in answer.records:
            if some == owner and sort == CNAME and kind != CNAME:
                owner, ttl = data, max(ttl, seconds)
    found = [(seconds, data) for some, sort, seconds, data in answer.records
             if some == owner and sort == kind]
    return owner, max([ttl] + [seconds for seconds, _ in found]), [data for _, data in found]


def zone_servers(config: Config, owner: str) -> dict:
    """{name: [address]} of the servers that the zone of a name has by its NS records. Raises
    ValueError if they are not found."""
    import socket

    def find(name, kind):
        return dns_follow(dns_find(config, name, kind)[1], name, kind)[2]

    try:
        zones, name = [], owner
        while name and not zones:  # the SOA that comes for an alias is that of its end
            soa = dns_find(config, name, SOA)[1]
            zones = [record[0] for record in soa.records + soa.authority
                     if record[1] == SOA and f".{owner}".endswith(f".{record[0]}")]
            name = name.partition(".")[2]
        # Sorted: resolvers shuffle them, and what is wrong is to be the same text each time
        found = {name: [socket.inet_ntop(family, data) for kind, family in (
            (A, socket.AF_INET), (AAAA, socket.AF_INET6)) for data in sorted(find(name, kind))]
            for zone in zones[:1] for name in sorted(find(zone, NS))}
    except (ValueError, OSError) as error:
        raise ValueError(f"the servers of the zone of {owner} are not found ({reason(error)}): set "
                         "dns-servers")
    if not found:
        raise ValueError(f"the zone of {owner} has no servers: set dns-servers")
    return found


def dns_own(config: Config, owner: str, kind: int) -> list:
    """[(server, Answer or its error)]: what each of the zone's own servers has for the records of a
    kind of a name. Raises ValueError if they are not found."""
    import errno
    no_route = errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT

    def ask(address):
        try:
            answer = dns_ask(address, owner, kind, OWN)
            return answer if answer.authoritative else ValueError(
                f"{address} is no server of the zone of {owner}")
        except (ValueError, OSError) as error:
            return error

    found = [(server, ask(server)) for server in config.dns_servers or ()]
    if any(isinstance(answer, Answer) for _, answer in found) or found and (
            owner in tlsa_names(config)):
        return found
    for name, addresses in zone_servers(config, owner).items():  # or an alias led to another zone
        rows = [(address, ask(address)) for address in addresses]
        # No route, as to IPv6 from a machine without, matters only if there is none to any address
        routed = [row for row in rows if getattr(row[1], "errno", None) not in no_route]
        found += routed or rows[-1:] or [(name, ValueError(
            f"{name}, a server of the zone of {owner}, has no address"))]
    return found


def dns_trace(config: Config, name: str, kind: int) -> list:
    """[(server, owner, Answer or its error)]: what every own server of every zone has on the way
    from a name through its aliases to the records of a kind (RFC 7671 section 7), for one that lags
    may lead elsewhere."""
    rows, todo, known = [], [name], {name}
    while todo and len(known) < 10:
        owner = todo.pop()
        try:
            found = dns_own(config, owner, kind)
        except ValueError as error:
            found = [("", error)]
        for server, answer in found:
            rows.append((server, owner, answer))
            end = dns_follow(answer, owner, kind)[0] if isinstance(answer, Answer) else owner
            todo += [end] if end not in known else []
            known.add(end)
    return rows


def plain(name: str) -> str:
    """A name of `tlsa` as in an Answer."""
    return name.rstrip(".").lower()


def tlsa_names(config: Config) -> list:
    """The names of `tlsa` as in an Answer."""
    return [plain(name) for name in config.tlsa or ()]


def tlsa_parts(name: str) -> tuple:
    """(port and protocol, host) of a TLSA name (RFC 6698 section 3); of one that is only the end of
    an alias ("", name)."""
    return re.match(r"(_[0-9]+\._[a-z]+\.|)(.*)", plain(name)).groups()


def tlsa_base(config: Config, name: str) -> tuple:
    """(base, host, end): where clients look for the records of a TLSA name: if its host is an
    alias, first at that alias' end (RFC 7671 section 7); else host is "". An alias that is not
    validated is not followed. Raises ValueError, OSError."""
    prefix, host = tlsa_parts(name)
    resolver, answer = dns_find(config, host, A, VALIDATED)
    end = dns_follow(answer, host, A)[0]
    if prefix and end != host and not distrust(config, resolver, answer) and dns_follow(
            dns_resolve(config, prefix + end, TLSA), prefix + end, TLSA)[2]:
        return prefix + end, host, end
    return prefix + host, "", ""


def tlsa_owner(config: Config, name: str) -> str:
    """The name at which the records of a TLSA name are, or are to be, behind all aliases; the name
    itself if no resolver answers."""
    try:
        base = tlsa_base(config, name)[0]
        return dns_follow(dns_find(config, base, TLSA)[1], base, TLSA)[0]
    except (ValueError, OSError):
        return plain(name)


def tlsa_rows(config: Config, name: str) -> list:
    """[(server, owner, Answer or error, end)]: all that there is to see of a TLSA name: at the
    resolver ("the resolver") and at all own servers; end: for rows about its host, an alias, where
    that must lead to, else ""."""
    base, host, end = plain(name), "", ""
    try:
        base, host, end = tlsa_base(config, name)
        seen = dns_resolve(config, base, TLSA)
    except (ValueError, OSError) as error:
        seen = error
    return [("the resolver", base, seen, "")] + [(*row, "") for row in dns_trace(
        config, base, TLSA)] + [(*row, end) for row in (dns_trace(config, host, A) if host else ())]


def look_at_dns(config: Config, keys: list, must: list) -> Look:
    """The Look at all names of `tlsa`. keys, must: shown_keys() and must_hold()."""
    look, ttls = Look([], [], {}, -1, [], [], []), []
    for name in config.tlsa:
        rows = [row for row in tlsa_rows(config, name) if judge_row(keys, must, look, *row)]
        ttls += [dns_follow(answer, owner, A if end else TLSA)[1] for _, owner, answer, end in rows]
        if all(row[0] == "the resolver" for row in rows):
            ttls.append(None)  # it knows only what is left of it
    once = [list(dict.fromkeys(texts)) for texts in (
        look.outage + look.wrong, look.outage, look.foreign, look.stale, look.brittle)]
    return Look(*once[:2], look.found, -1 if None in ttls else max(ttls), *once[2:])


def judge_row(keys: list, must: list, look: Look, server: str, owner: str, answer,
              end: str) -> bool:
    """Add to a Look what there is to say of a row of tlsa_rows(). Was there an answer? For the
    rest see look_at_dns()."""
    if not isinstance(answer, Answer):
        look.wrong.append(reason(answer))
        look.found[f"{owner} {server}"] = None
        return False
    there, _, data = dns_follow(answer, owner, A if end else TLSA)
    if there != owner:  # caches may have where it led before, whatever was found there
        look.found[f"{owner} {server} {there}"] = True
    if end and data and there != end:
        look.wrong.append(f"{owner}: {server} says that it is at {there}, not at {end}")
    if not end and (server == "the resolver" or there == owner):  # else its end is asked for, too
        judge(keys, must, look, server, there, answer, data)
    return True


def judge(keys: list, must: list, look: Look, server: str, owner: str, answer: Answer,
          records: list):
    """Add to a Look what a server has as the TLSA records (list of bytes, RFC 6698 section 2.1) of
    an owner. Only 3 1 1 counts, for it outlives renewals (RFC 7671 section 5.1)."""
    told, (_, live, _) = f"{owner}: {server} says", keys[0]
    names = {key: f"'{name}'" for name, key, _ in keys}
    digests = {record[3:].hex() for record in records if record[:3] == b"\3\1\1"}
    look.found[f"{owner} {server}"] = set(names) <= digests
    if not digests:
        # By RFC 2308 section 5; what is left of that in a cache would be another text each time
        kept = [f" (that may stay cached for {int.from_bytes(data[-4:], 'big')} s)"
                for _, kind, _, data in answer.authority
                if kind == SOA and not answer.authoritative]
        look.outage.append(f"{told} no TLSA record 3 1 1{''.join(kept)}")
    for key in [key for key in must if key not in digests] if digests else ():
        name = names.get(key, "the old key, which services may still use")
        out = look.wrong if key in set(names) - {live} else look.outage
        out.append(f"{told} no 3 1 1 record for {name}")
    judge_others(keys, look, told, records)
    if server != "the resolver":  # which may have old ones cached
        look.stale.extend(f"{owner}: 3 1 1 {digest}" for digest in digests - set(must))


def judge_others(keys: list, look: Look, told: str, records: list):
    """Add to a Look what TLSA records other than ours mean. told: where they are."""
    ours = b"\3\1\1" + bytes.fromhex(keys[0][1])
    kinds = {record[:1] for record in records}
    if kinds == {b"\3"} and ours not in records:  # a CA's (2) may fit a new key, too
        others = ", ".join(sorted(record[3:].hex() for record in records))
        look.foreign.append(f"{told} TLSA records of other keys only ({others})")
    long = {record[3:].hex() for record in records if record[:3] == b"\3\1\2"}
    # Of several digests clients take the strongest (RFC 7671 section 9)
    look.wrong.extend(f"{told} no 3 1 2 record for '{name}', but of other keys"
                      for name, _, sha512 in keys if long and sha512 not in long)
    look.brittle.extend(f"{told} 3 0 {record[2]}, which the next renewal breaks: publish 3 1 1"
                        for record in records if record[:2] == b"\3\0" and len(record) > 2)


def look_at_services(config: Config, spki: str) -> list:
    """What is wrong with the services that must use the live key (its digest) by now: each at every
    address of its host, with each name that clients ask for (SNI)."""
    import socket
    problems = []
    for service in config.served:
        name, host, port, protocol = re.match(
            r"(?:(.*)@)?\[?(.*?)\]?:([0-9]+)(?:/(.*))?\Z", service).groups()
        try:
            known = sorted(socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM))
        except OSError as error:
            problems.append(f"{service} has no address: {error}")
            continue
        for address, asked in {(info[4][0], asked): 0 for info in known
                               for asked in names_of_service(config, name, host)}:
            only = asked == host and len(known) == 1
            where = service if only else f"{service} ({f'{asked} {address}'.strip()})"
            try:
                shown = keys_of_service(f"[{address}]:{port}", asked, protocol)
                if spki not in shown:  # which asks no longer than needed
                    problems.append(f"{where} uses another key than the live one")
            except (OSError, ValueError) as error:
                problems.append(f"{where} cannot be reached: {reason(error)}")
    return problems


def names_of_service(config: Config, name: str, host: str) -> list:
    """By which names clients ask for a service: as configured, else its host's; for one given by
    its address the hosts that `tlsa` names, or none ("")."""
    if name or not re.match(r"[0-9.]+\Z|.*:", host):
        return [name or host]
    return [host for prefix, host in map(tlsa_parts, config.tlsa or ()) if prefix] or [""]


def keys_of_service(where: str, name: str, protocol: str):
    """Yield the digests (as in TLSA 3 1 1) of the keys that a service shows to those who ask for a
    name: it may have one of each kind. Some greet slowly, so it has 45 seconds. Raises ToolError,
    ValueError."""
    args = ["-servername", name] if name else ["-noservername"]
    if protocol:
        args += ["-starttls", protocol]
        # By which name to greet: the domain, or ours instead of mail.example.com
        args += ["-name", name if "xmpp" in protocol else os.uname().nodename]
    any_shown, failure = False, ValueError("it shows no certificate")
    for kind in ("ECDSA+SHA256:ECDSA+SHA384:ECDSA+SHA512",
                 "RSA-PSS+SHA256:RSA+SHA256:RSA+SHA384:RSA+SHA512"):
        try:
            shown = openssl("s_client", "-connect", where, *args, "-sigalgs", kind, seconds=45)
        except ToolError as error:  # it may hang up after its certificate, for it wants ours
            shown, failure = error.output, error
        if b"BEGIN CERT" in shown:  # without -showcerts one certificate, the leaf
            any_shown = True
            yield sha256(parse_certificate(certificates(shown)[0]).spki)
    if not any_shown:
        raise failure


def wrong_addresses(config: Config, name: str, token: str, text: str) -> list:
    """Which addresses of a name do not show a text in the place of a challenge's, and why."""
    import socket
    try:
        known = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    except OSError as error:
        return [f"it has no address ({error})"]
    hosts = [f"[{address}]" if ":" in address else address
             for address in dict.fromkeys(info[4][0] for info in known)]
    found = [self_check(f"http://{host}/.well-known/acme-challenge/{token}", text, 5, name)
             for host in hosts]
    return list(filter(None, found))


def look_at_zones(config: Config) -> list:
    """What is wrong with the zones in which TXT records prove names."""
    return [] if config.challenge != "dns-01" else [
        reason(answer) for name in config.domains
        for _, _, answer in dns_trace(config, f"_acme-challenge.{base_name(name)}", TXT)
        if not isinstance(answer, Answer)]


def look_at_mail(config: Config) -> list:
    """Which hosts of ours that mail goes to are not in `tlsa`, where others are. Raises ValueError,
    OSError."""
    mail = [(name, host) for name in map(base_name, config.domains if config.tlsa else ())
            if not is_address(name)
            for host in dns_follow(dns_find(config, name, MX)[1], name, MX)[2]]
    return [f"mail for {name} goes to {host}, but tlsa does not name _25._tcp.{host}"
            for name, host in mail
            if host in config.domains and f"_25._tcp.{host}" not in tlsa_names(config)]


def look_at_names(config: Config) -> list:
    """What keeps the records at the names of `tlsa` from being seen, whichever they are."""
    return [reason(answer) for name in config.tlsa or () for _, _, answer, _ in tlsa_rows(
        config, name) if not isinstance(answer, Answer)]


# ---- Hooks: runs them ---------------------------------------------------------------------------


class Uninterrupted:
    """A context in which SIGINT, SIGTERM and SIGHUP wait for its end. They are not blocked, for
    what is started in it would inherit that."""

    def __enter__(self):
        self.waiting = []
        self.handlers = {number: signal.signal(number, lambda *args: self.waiting.append(args))
                         for number in SIGNALS if signal.getsignal(number) == stop}

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        for number, frame in self.waiting[:1]:
            stop(number, frame)


def run_hook(line: Line, staged: bool, name: str, *args: str):
    """Run a hook (its key in the config), with its children, for hook-timeout at most. staged: is a
    key staged. Raises Problem unless it exits 0, OSError if it cannot be started."""
    import subprocess
    config, program = line.config, option(line.config, name)
    env = {k: v for k, v in os.environ.items() if not k.startswith("STAGING_")}
    env.update(HOOK=name, CONFIG=config.file, DOMAINS=" ".join(config.domains),
               LIVE_CRT=line.live.crt, LIVE_KEY=line.live.key)
    if staged:
        env.update(STAGING_CRT=line.staging.crt, STAGING_KEY=line.staging.key)
    quiet = {name: subprocess.DEVNULL for fd, name in ((1, "stdout"), (2, "stderr")) if fd in deaf}
    hook = None
    try:
        with Uninterrupted():  # a signal before we know its process would leave it running
            hook = subprocess.Popen([program, *args], stdin=subprocess.DEVNULL, env=env,
                                    start_new_session=True, **quiet)
        status = f"exit status {hook.wait(config.hook_timeout)}"
    except subprocess.TimeoutExpired:
        status = f"killed after {config.hook_timeout:g} seconds"
    finally:
        if hook and hook.returncode is None:
            os.killpg(hook.pid, signal.SIGKILL)
            hook.wait()
    if hook.returncode:
        raise Problem(f"{name} ({program}) failed: {status}; it runs again next time")


# ---- Proofs by DNS: asks the network, runs the challenge hook -----------------------------------

def texts(records: list) -> list:
    """The texts of TXT records (list of bytes; RFC 1035 section 3.3.14)."""
    found = []
    for data in records:
        text, at = b"", 0
        while at < len(data):
            text += data[at + 1:at + 1 + data[at]]
            at += 1 + data[at]
        found.append(text.decode("utf-8", "replace"))
    return found


def base_name(name: str) -> str:
    """The host name in a name of a certificate, without *. before it."""
    return name[2:] if name.startswith("*.") else name


class DnsHook(Solver):
    """Solves dns-01 (RFC 8555 section 8.4) by a program with the interface of dehydrated's hooks.

    note(records): called with the records before they are made; trouble(text): told what is wrong;
    log(text): told what there is to wait for; staged: is a key staged. records: of [name, token,
    value] each.
    """

    def __init__(self, line: Line, staged: bool, note=None, trouble=None, log=None):
        self.line, self.staged, self.note, self.trouble = line, staged, note, trouble
        self.log, self.records = log, []

    def task(self, name: str, challenge: dict, account: Client) -> list:
        """[name, token, value of its TXT record], or None if it is not dns-01. Raises AcmeError."""
        import hashlib
        if challenge.get("type") != "dns-01":
            return None
        token = token_of(name, challenge)
        digest = hashlib.sha256(f"{token}.{account.key.thumbprint}".encode()).digest()
        return [base_name(name), token, b64(digest)]

    def present(self, tasks: list):
        """Have the records made, and wait until all servers show them, for so long. Raises
        Problem, OSError."""
        self.put(tasks)
        seconds = self.line.config.propagation_seconds
        end, wrong = time.monotonic() + seconds, self.missing(tasks)
        if wrong:
            self.log(f"Waiting until all servers show the TXT records, {seconds:g} s at most...")
        while wrong and time.monotonic() < end:
            time.sleep(min(2, max(0, end - time.monotonic())))
            wrong = self.missing(tasks)
        if wrong:
            self.trouble(f"warning: after {seconds:g} seconds not all TXT records are there: "
                         f"{'; '.join(wrong)}")

    def put(self, tasks: list):
        """Have the records made. Raises Problem, OSError."""
        self.records = self.records + tasks
        self.note(list(self.records))
        for task in tasks:
            run_hook(self.line, self.staged, "challenge-hook", "deploy_challenge", *task)

    def missing(self, tasks: list) -> list:
        """Where the records are missing (list of str), at all of the zone's own servers."""
        wrong = []
        for name in dict.fromkeys(name for name, *_ in tasks):  # a wildcard has that of all
            wanted = [value for some, _, value in tasks if some == name]
            for server, owner, answer in dns_trace(
                    self.line.config, f"_acme-challenge.{name}", TXT):
                if not isinstance(answer, Answer):
                    wrong.append(reason(answer))
                    continue
                end, _, found = dns_follow(answer, owner, TXT)
                wrong += [f"{owner}: {server} shows no TXT record {value}" for value in wanted
                          if end == owner and value not in texts(found)]
        return list(dict.fromkeys(wrong))

    def remove(self):
        """Have the records removed; what cannot be is only told, and stays in .records."""
        for record in list(self.records):
            try:
                run_hook(self.line, self.staged, "challenge-hook", "clean_challenge", *record)
                self.records.remove(record)
            except (Problem, OSError) as error:
                self.trouble(reason(error))


class DnsPersist(Solver):
    """Solves dns-persist-01 (draft-ietf-acme-dns-persist, -01 and -02) by TXT records that stay,
    and name the account: it only looks whether they are there."""

    def __init__(self, config: Config):
        self.config = config

    def ready(self, names: list, account: Client):
        """Raise AcmeError if a record is not there, as far as the CA's directory tells by which
        names it issues."""
        if not account.account:
            account.register()
        issuers = persist_issuers(account)
        for name in names if issuers else ():
            self.look(name, account, issuers)

    def task(self, name: str, challenge: dict, account: Client) -> str:
        """The name, or None if it is not dns-persist-01. Raises AcmeError, which names the record,
        if there is none."""
        if challenge.get("type") != "dns-persist-01":
            return None
        issuers = challenge.get("issuerDomainNames", challenge.get("issuer-domain-names"))
        if not isinstance(issuers, list) or not 1 <= len(issuers) <= 10 or not all(
                isinstance(issuer, str) for issuer in issuers):
            raise AcmeError(f"{name} cannot be verified: its challenge names no issuers")
        self.look(name, account, issuers)
        return name

    def look(self, name: str, account: Client, issuers: list):
        """Raise AcmeError unless there is a record for a name by one of these issuers."""
        owner, uris = f"_validation-persist.{base_name(name)}", persist_uris(account, name)
        try:
            found = texts(dns_follow(dns_find(self.config, owner, TXT)[1], owner, TXT)[2])
        except (ValueError, OSError) as error:
            raise AcmeError(f"{owner} cannot be looked up: {reason(error)}")
        if not any(persists(text, issuers, uris, name.startswith("*.")) for text in found):
            raise AcmeError(f"publish first: {persist_record(account, name, issuers[0])}")


def persist_uris(account: Client, name: str) -> list:
    """What may stand for an account in the record of a name: its URL, or, if the CA says by which
    prefix (-02), a hash of that with the name, or with * for all names."""
    import hashlib
    prefix = member(account.meta(), "accountHashPrefix")
    about = f"{account.key.thumbprint}{account.account}"
    return [prefix + "sha-256/" + b64(hashlib.sha256(
        bytes([len(some)]) + f"{some}{about}".encode()).digest())
        for some in (base_name(name), "*")] if prefix else [account.account]


def persist_issuers(account: Client) -> list:
    """The names by which the CA's directory says that it issues; [] if it does not say."""
    meta = account.meta()
    found = meta.get("issuerDomainNames", meta.get("caaIdentities"))
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def persist_record(account: Client, name: str, issuer: str) -> str:
    """The record for a name, as a line of a zone file."""
    policy = "; policy=wildcard" if name.startswith("*.") else ""
    text = f"{issuer}; accounturi={persist_uris(account, name)[0]}{policy}"
    parts = " ".join(f'"{text[at:at + 255]}"' for at in range(0, len(text), 255))
    return f"_validation-persist.{base_name(name)}. 3600 IN TXT {parts}"


def persists(text: str, issuers: list, uris: list, wildcard: bool) -> bool:
    """Does the text of a record let one of these issuers issue to one of these accounts now?"""
    issuer, *rest = [part.strip() for part in text.split(";")]
    tags = {tag.strip().lower(): value.strip() for tag, _, value in (
        part.partition("=") for part in rest)}
    until = tags.get("persistuntil", "9" * 12)
    return bool(issuer.lower().rstrip(".") in [name.lower().rstrip(".") for name in issuers]
            and tags.get("accounturi") in uris
            and re.match(r"[0-9]{1,15}\Z", until) and int(until) > time.time()
            and (not wildcard or tags.get("policy", "").lower() == "wildcard"))


def solver_of(config: Config, staged: bool, note, trouble, log) -> Solver:
    """What proves the names, as the config has it. note(**notes): called with the notes of what it
    will make; the rest as of DnsHook."""
    if config.challenge == "stateless":
        return Stateless()
    if config.challenge == "dns-persist-01":
        return DnsPersist(config)
    if config.challenge == "dns-01":
        return DnsHook(Line(config), staged, lambda records: note(records=records), trouble, log)
    return HttpFiles(config.challenge_dir, config.self_check,
                     note=lambda files: note(challenges=files), trouble=trouble)


# ---- Child: the rooms above, as far as they talk to the network, with the rights of run-as ------
# With run-as they work in a process of that user's, which sees no private key, and asks this one
# for what it lacks by JSON lines. What it returns is looked at again, and what it wants signed must
# be part of the present request.

LINE_BYTES, CALL_SECONDS, MESSAGES = 4000000, 1000, 5000
LOOK = {"wrong": [""], "outage": [""], "found": {"": None}, "ttl": 0.0, "foreign": [""],
        "stale": [""], "brittle": [""]}
OUTSIDE = {function.__name__: (function, shape) for function, shape in (
    (look_at_dns, LOOK), (look_at_services, [""]), (tlsa_owner, ""), (wrong_addresses, [""]),
    (look_at_zones, [""]), (look_at_mail, [""]), (look_at_names, [""]))}
METHODS = {"ask_nonce": None, "directory": "", "offered": "", "meta": {}, "register": None,
           "exists": True, "check_profile": None, "obtain": {"chain": "", "url": ""},
           "revoke": None, "deactivate": None, "change_key": None,
           "renewal_window": {"begin": 0.0, "end": 0.0, "url": "", "wait": 0}}
children = {}  # user -> Pipe


class Pipe:
    """JSON lines from and to another process; bytes are {"bytes": base64url}. served: {name:
    function} that it may call while it is waited for."""

    def __init__(self, source, target, process=None):
        self.source, self.target, self.process, self.served = source, target, process, {}

    def send(self, **message):
        """Send a message. Raises OSError."""
        text = json.dumps(message, default=lambda thing: {"bytes": b64(thing)} if isinstance(
            thing, bytes) else list(thing))
        self.target.write(text.encode() + b"\n")
        self.target.flush()

    def receive(self) -> dict:
        """The next message. Raises EOFError, ValueError, RecursionError."""
        line = self.source.readline(LINE_BYTES)
        if not line.endswith(b"\n"):
            raise EOFError("it has ended")
        return dict(json.loads(line, object_hook=lambda found: unb64(found["bytes"]) if list(
            found) == ["bytes"] else found))

    def call(self, name: str, *args, seconds: float = CALL_SECONDS, **served):
        """What a function of the other process returns, or its error. Raises AcmeError if that
        process itself fails, or takes so long, without what it calls for."""
        end, self.served = time.monotonic() + seconds, served
        try:
            self.send(call=name, args=args)
            for _ in range(MESSAGES):
                message = within(max(0.01, end - time.monotonic()), self.receive)
                if "call" not in message:
                    break
                begin = time.monotonic()
                self.serve(message)
                end += time.monotonic() - begin
            result, error = message.get("result"), "error" in message and error_of(message)
        except Exception as failure:  # whatever a strange message makes Python raise
            end_children()
            raise AcmeError(f"the process that run-as is for failed: {failure}", 0)
        if error:
            raise error
        return result

    def serve(self, message: dict):
        """Do what the other process calls for; send what comes of it. Raises OSError."""
        try:
            reply = {"result": self.served[message["call"]](*message["args"])}
        except Exception as error:
            reply = {name: getattr(error, name, None) for name in ("status", "type", "retry_after")}
            reply.update(error=reason(error), kind=type(error).__name__)
        self.send(**reply)


def error_of(message: dict) -> Exception:
    """The error in a message."""
    kind = {"AcmeError": AcmeError, "OrderFailed": OrderFailed}.get(message["kind"])
    if not kind:
        return ToolError(printable(message["error"], 2000))
    return kind(message["error"], *[
        message[name] if isinstance(message[name], sort) else None
        for name, sort in (("status", int), ("type", str), ("retry_after", int))])


def child_of(config: Config) -> Pipe:
    """The Pipe to the process of run-as, which is started if need be. Raises OSError."""
    import subprocess
    if config.run_as not in children:
        env = {name: os.environ[name] for name in os.environ if name.lower() in (
            "path", "ssl_cert_file", "ssl_cert_dir", "https_proxy", "no_proxy")}
        process = subprocess.Popen(
            [sys.executable, "-IS", os.path.abspath(__file__), "child", config.run_as], cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env,
            start_new_session=True)
        children[config.run_as] = Pipe(process.stdout, process.stdin, process)
    return children[config.run_as]


def end_children():
    """End the processes of run-as."""
    while children:
        from contextlib import suppress
        _, pipe = children.popitem()
        with suppress(OSError), pipe.process as process:  # which may be gone
            process.kill()


def believed(found, shape):
    """What came from the other process, if it has this shape (as in STATE). Raises AcmeError."""
    if not alike(found, shape):
        raise AcmeError("the process that run-as is for answers nonsense", 0)
    return found


def outside(config: Config, function, *args):
    """function(config, *args), one of OUTSIDE, where it may talk to the network. Raises its errors,
    AcmeError."""
    if not config.run_as:
        return function(config, *args)
    name = function.__name__
    found = believed(child_of(config).call("outside", name, config, *args), OUTSIDE[name][1])
    return Look(*[found[field] for field in Look._fields]) if isinstance(found, dict) else found


class FarClient:
    """As a Client, whose work is done in the process of run-as: METHODS. config: of the line that
    uses it now; may: the members that a signed payload may have (name -> list of values)."""

    def __init__(self, config: Config, key: AccountKey, eab: MacKey, log):
        self.config, self.key, self.eab, self.log, self.url = (
            config, key, eab, log, config.directory_url)
        self.contact, self.account, self.skew, self.may = config.contact, None, None, {}

    def __getattr__(self, name: str):
        return lambda *args: self.far(name, *args)

    def far(self, name: str, *args, may: dict = None, **served):
        """What a method of the Client there returns. served: as of Pipe. Raises its errors."""
        self.may = {"termsOfServiceAgreed": [True], "onlyReturnExisting": [True],
                    "contact": [self.contact], **(may or {})}
        key = self.key and [self.key.alg, self.key.jwk, self.key.thumbprint]
        return believed(child_of(self.config).call(
            "client", self.config, self.contact, key, self.eab and self.eab.kid, self.account, name,
            *args, seconds=CALL_SECONDS + self.config.propagation_seconds, sign=self.sign,
            mac=lambda data: self.sign_part(self.eab, self.key.jwk, data), known=self.known,
            news=lambda text: say(printable(text)), log=self.log, **served), METHODS[name])

    def known(self, account: str, skew: float):
        """Note what the other process knows by now."""
        self.account = account if isinstance(account, str) else None
        self.skew = skew if isinstance(skew, (int, float)) and abs(skew) < 1e11 else None

    def sign(self, data: bytes) -> bytes:
        """A signature by the account key, for what is part of this request. Raises AcmeError."""
        text = unb64(data.decode().partition(".")[2]).decode()
        members = dict(json.loads(text or "{}"))
        # Written as we do: of a member that is there twice, who knows which one the CA takes?
        if text not in ("", json.dumps(members)) or not all(
                members[name] in self.may.get(name, ()) for name in members):
            raise AcmeError(f"run-as: no part of this request: {printable(text)}")
        return self.key.sign(data)

    def sign_part(self, key, payload: dict, data: bytes) -> bytes:
        """A signature by another key, for a JWS that is part of a payload. Raises AcmeError."""
        protected, text = data.decode().split(".")
        if json.loads(unb64(text)) != payload:
            raise AcmeError(f"run-as: no part of this request: {printable(text)}")
        made = key.sign(data)
        part = {"protected": protected, "payload": text, "signature": b64(made)}
        self.may.update({name: [part[name]] for name in part}, externalAccountBinding=[part])
        return made

    def obtain(self, names: list, csr: bytes, solver: Solver, known: str = None,
               finalizing=lambda url: None, profile: str = None, replaces: str = None,
               issuer: str = None) -> tuple:
        """As of Client, but what is put in place for a challenge is made here, from its token."""
        made = []

        def put(tasks):
            if made or len(tasks) > len(names) or not all(
                    name in map(base_name, names) for name, *_ in tasks):
                raise AcmeError("run-as: this request needs no such challenge")
            made.extend(tasks)
            solver.put([solver.task(name, {"type": self.config.challenge, "token": token}, self)
                        for name, token, *_ in tasks])

        may = {"identifiers": [identifiers(names)], "csr": [b64(csr)], "profile": [profile],
               "replaces": [replaces]}
        try:
            found = self.far(
                "obtain", names, csr, known, profile, replaces, issuer, may=may, put=put,
                remove=solver.remove, finalizing=lambda url: finalizing(str(url)),
                trouble=lambda text: complain(self.config.file, text))
        finally:
            solver.remove()
        spki, now = parse_csr(csr)[1], time.time()
        chain = check_chain(found["chain"], spki, names, now, now + (self.skew or 0))
        return chain, found["url"]

    def revoke(self, data: bytes, reason: int):
        """As of Client."""
        self.far("revoke", data, reason, may={"certificate": [b64(data)], "reason": [reason]})

    def deactivate(self):
        """As of Client."""
        self.far("deactivate", may={"status": ["deactivated"]})

    def change_key(self, new: AccountKey):
        """As of Client."""
        payload = {"account": self.account, "oldKey": self.key.jwk}
        self.far("change_key", [new.alg, new.jwk, ""],
                 sign_new=lambda data: self.sign_part(new, payload, data))
        self.key = new


def child(user: str):
    """The process of run-as: does what its parent calls for, until that has ended."""
    from types import SimpleNamespace
    drop_rights(user)
    pipe, clients = Pipe(sys.stdin.buffer, sys.stdout.buffer), {}

    def key(name, known):
        return known and SimpleNamespace(**dict(zip(("alg", "jwk", "thumbprint"), known)),
                                         sign=lambda data: pipe.call(name, data))

    def client(values, contact, account_key, kid, account, name, *args):
        config = Config(*values)
        about = json.dumps([config.directory_url, config.proxy, config.ca_bundle, account_key, kid])
        if about not in clients:
            clients[about] = Client(
                config.directory_url, key("sign", account_key), None, None, config.ca_bundle,
                config.proxy, kid and SimpleNamespace(**vars(key("mac", ["HS256"])), kid=kid),
                lambda text: pipe.call("log", text), lambda text: pipe.call("news", text))
        one = clients[about]
        one.account, one.contact = account, contact
        try:
            if name == "obtain":
                return obtain(one, config, *args)
            if name == "change_key":
                args = [key("sign_new", args[0])]
            return getattr(one, name)(*args)
        finally:
            pipe.call("known", one.account, one.skew)

    def obtain(one, config, names, csr, known, *args):
        solver = solver_of(config, False, None, lambda text: pipe.call("trouble", text), one.log)
        solver.put = lambda tasks: pipe.call("put", tasks)
        solver.remove = lambda: pipe.call("remove")
        return dict(zip(("chain", "url"), one.obtain(
            names, csr, solver, known, lambda url: pipe.call("finalizing", url), *args)))

    def ask(name, values, *args):
        found = OUTSIDE[name][0](Config(*values), *args)
        return found._asdict() if isinstance(found, Look) else found

    while True:
        message = pipe.receive()
        pipe.served = {"client": client, "outside": ask}
        pipe.serve(message)


def drop_rights(user: str):
    """Become a user who can write no file, and get no other rights ever again."""
    import pwd, resource
    info = pwd.getpwnam(user)
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0),
                       (resource.RLIMIT_NOFILE, 100), (resource.RLIMIT_AS, 2**30)):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    if not os.geteuid():
        os.setgroups([])
        os.setgid(info.pw_gid)
        os.setuid(info.pw_uid)
    try:
        import ctypes
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    except (ImportError, OSError, AttributeError, MemoryError):
        pass  # not Linux; or systemd forbids such calls, and has set this itself


# ---- Files: the only code that writes -----------------------------------------------------------


def sync_folder(file: str):
    """Make what was done to the folder of this file last. Raises OSError."""
    import errno
    fd = os.open(os.path.dirname(file), os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(fd)


def write_file(file: str, data: bytes, mode: int = 0o600, like: str = None, temp: str = None,
               made: float = None):
    """Put data in a file so that whoever reads it finds the old or the new, never half.

    mode: whatever the umask; like: a file whose owner, group, mode and ACL to take, as far as they
    can be given; made: its time (seconds since 1970), if not by our own clock. Raises OSError.
    """
    temp, ours = temp or file + ".tmp", False
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        ours = True
        with open(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            if like:
                copy_rights(like, fd, file)
            else:
                os.fchmod(fd, mode)
            if made is not None:
                os.utime(temp, (made, made))
            os.fsync(fd)
        os.replace(temp, file)
        ours = False
        sync_folder(file)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", file)
    finally:
        if ours:
            os.unlink(temp)


def copy_rights(like: str, fd: int, file: str):
    """Give the file behind fd the owner, group, mode and POSIX ACL of the file like. What cannot be
    given is said; then nobody else may read it. file: its name, for people. Raises OSError."""
    import errno
    info, acl = os.stat(like), "system.posix_acl_access"
    try:
        os.fchown(fd, info.st_uid, info.st_gid)  # even a new file's group may not be ours (setgid)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
        if acl in (os.listxattr(like) if hasattr(os, "listxattr") else ()):
            os.setxattr(fd, acl, os.getxattr(like, acl))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL):
            raise
        say(f"{file} cannot be given owner {info.st_uid}, group {info.st_gid} and rights of {like}"
            f" ({error.strerror}): only its owner may read it")
        os.fchmod(fd, stat.S_IMODE(info.st_mode) & 0o700)


def back_up(line: Line, file: str) -> str:
    """Keep a file in the backups, under its name and time, by a hard link where possible. Returns
    the copy's path, "" if there was one before: one is enough. Raises OSError."""
    made = time.gmtime(max(0, os.stat(file).st_mtime))
    name = f"{os.path.basename(file)}.{time.strftime('%Y%m%d-%H%M%S', made)}"
    first = target = os.path.join(line.config.backups, name)
    count = 0
    while os.path.lexists(target):
        if read_file(target) == read_file(file):
            return ""
        count += 1
        target = f"{first}-{count}"
    try:
        os.link(os.path.realpath(file), target)
        sync_folder(target)
    except FileExistsError:  # another line was quicker
        return back_up(line, file)
    except OSError:
        write_file(target, read_file(file), like=file, temp=line.temp)
    return target


def update_state(line: Line, **changes):
    """Change notes in the state file; None removes one. Raises OSError."""
    old = read_state(line)
    new = {name: note for name, note in dict(old, **changes).items() if note is not None}
    if new != old:
        text = json.dumps(new, indent=1, sort_keys=True) + "\n"
        write_file(line.state, text.encode(), 0o644)


def swap(line: Line, now, *exts: str):
    """Give the staged files with these extensions the live names; what has them goes to the backups
    first. now: seconds since 1970, None if the clock was not looked at. Raises OSError."""
    moves = [(getattr(line.staging, ext), getattr(line.live, ext)) for ext in exts]
    for _, live in moves:
        if os.path.exists(live):
            back_up(line, live)
    with Uninterrupted():  # else a key would be without its certificate until the next run
        for staged, live in moves:
            if line.config.standby == "yes" and now:
                os.utime(staged, (now, now))  # its age is that of its life
            os.replace(staged, live)
        for _, live in moves:
            sync_folder(live)


def make_folder(folder: str, mode: int):
    """Make a folder of this mode, and those above it. Raises OSError."""
    if not os.path.isdir(folder):
        say(f"Making folder {folder}")
        umask = os.umask(0o022)
        try:
            os.makedirs(folder, mode, exist_ok=True)  # another run may be quicker
        finally:
            os.umask(umask)
        sync_folder(folder)


def make_key(file: str, kind: str, bits: int = None, like: str = None, made: float = None):
    """Write a new private key (PKCS#8 PEM), 0600 from the first byte. kind: rsa, ec-p256 or
    ec-p384; bits: of an RSA key, else 3072; like, made: as in write_file(). Raises OSError."""
    algorithm, size = ("RSA", f"rsa_keygen_bits:{bits or 3072}") if kind == "rsa" else (
        "EC", "ec_paramgen_curve:P-" + kind[4:])
    write_file(file, openssl("genpkey", "-algorithm", algorithm, "-pkeyopt", size), like=like,
               made=made)


def lock(file: str, seconds: float = 0):
    """An open file that holds a lock, waited for so long, until it is closed. Who cannot open it
    (0600) cannot hold the lock. Raises Problem (status 75), OSError."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return open(fd)
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(fd)
                raise Problem(f"another run holds {file}", 75)
            time.sleep(0.05)


def make_account_key(config: Config):
    """Make the account key (P-256) unless it is there, with nothing left of one that was not
    finished. Raises OSError, Problem."""
    file = config.account_key
    left = [temp for temp in (file + ".tmp", file + ".new.tmp") if os.path.lexists(temp)]
    if os.path.lexists(file) and not left:
        return
    with lock(file + ".lock", LOCK_SECONDS):  # lines may share this key
        remove(config, left)
        if not os.path.lexists(file):
            say(f"Making account key {file}")
            make_key(file, "ec-p256")


def remove(config: Config, files: list):
    """Remove files, if they are there; what cannot be removed is only told."""
    for file in files:
        try:
            os.unlink(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            complain(config.file, f"cannot remove {reason(error)}")


def clean_up(line: Line):
    """Remove what a killed run left: temporary and challenge files; tighten keys of 2017.
    Raises OSError, Problem."""
    config, state = line.config, read_state(line)
    remove(config, [line.temp, line.state + ".tmp"] + [
        file + ".tmp" for pair in (line.live, line.staging) for file in (pair.key, pair.crt)])

    def trouble(text):
        complain(config.file, text)

    files = HttpFiles(config.challenge_dir, trouble=trouble)
    zone = DnsHook(line, False, trouble=trouble)
    files.paths, zone.records = [list(state.get(name, ())) for name in ("challenges", "records")]
    if files.paths or zone.records:
        files.remove()
        if config.challenge_hook:
            zone.remove()
        update_state(line, challenges=files.paths or None, records=zone.records or None)
    if os.path.lexists(config.account_key):
        make_account_key(config)
    for file in line.live.key, line.staging.key, config.account_key:
        if os.path.exists(file) and os.stat(file).st_mode & 0o007:
            say(f"Making {file} readable for its owner only")
            os.chmod(file, 0o600)


# ---- Run: does what is due ----------------------------------------------------------------------


class Run:
    """One run for a line, and what it did so far, as far as that is not on disk.

    hooks, force, done, failed, looks: as in Facts; log: is told each step of the protocol; status:
    the exit status; told: the note of what was told; heard: all that was told; client: the Client
    for all requests; clients: those of other lines, by what they depend on; ahead: seconds that the
    CA's clock is ahead of ours, if it is believed; notes: those that a request leaves, whether it
    fails or not.
    """

    def __init__(self, line: Line, hooks: bool = False, force: str = "", log=lambda text: None,
                 clients: dict = None):
        self.line, self.config, self.hooks, self.force = line, line.config, hooks, force
        self.done, self.failed, self.looks, self.told, self.notes = set(), set(), {}, {}, {}
        self.client, self.ahead, self.status, self.log, self.heard = None, 0, 0, log, []
        self.clients = {} if clients is None else clients

    def facts(self) -> Facts:
        """The Facts as they are now. Raises Problem, OSError."""
        line, now, key = self.line, time.time() + self.ahead, read_key(self.line.live.key)
        if not key or not key.spki:
            wrong = f"no private key that can be used ({key.kind})" if key else "missing"
            raise Problem(f"{line.live.key} is {wrong}: restore it from {line.config.backups}, or "
                          f"{'move it away and ' if key else ''}run init for a new one")
        return Facts(key, read_crt(line.live.crt), read_key(line.staging.key),
                     read_crt(line.staging.crt), read_state(line), now, time.time(), self.force,
                     self.hooks, frozenset(self.done), frozenset(self.failed), dict(self.looks))

    def note(self, **notes):
        """Change notes in the state file; None removes one. Raises OSError."""
        update_state(self.line, **notes)

    def reconcile(self) -> int:
        """Do what is due, one Step after the other. Returns the exit status. Raises Problem,
        OSError."""
        for _ in range(50):
            facts = self.facts()
            plan = decide(self.config, facts)
            if plan.step is None:
                return self.conclude(facts, plan)
            self.perform(facts, plan.step)
        raise Problem(f"it does not settle: {text_of(self.config, plan.step, facts)}, for ever")

    def perform(self, facts: Facts, step: Step):
        """Do one Step. One that fails is told, and not tried again in this run."""
        try:
            if step.verb == "look":
                self.looks[step.what] = getattr(self, "look_at_" + step.what)(facts)
                return
            tell_why = step.verb in ("stage", "drop", "discard", "rename") or self.force == "now"
            why = f": {step.why}" if tell_why and step.verb not in ("request", "hook") else ""
            say(text_of(self.config, step, facts) + why)
            getattr(self, "do_" + step.verb)(facts, step.what)
        except (Problem, ValueError, OSError) as error:
            self.failed.add((step.verb, step.what))
            self.tell(reason(error))
        # What was seen before says nothing of what is there now; but the clock goes on
        self.looks = {what: self.looks[what] for what in self.looks if what == "clock"}

    # -- looks: they return what is wrong (list of str); they raise OSError if it cannot be noted

    def look_at_clock(self, facts: Facts) -> list:
        """Ask the CA what time it is; from then on that is the time."""
        try:
            self.open_client().ask_nonce()
        except (AcmeError, OSError) as error:
            if getattr(error, "retry_after", None) is not None:
                self.note(retry=self.retry_note(facts, error))
            return [reason(error)]
        return self.believe_clock(facts)

    def believe_clock(self, facts: Facts) -> list:
        """Take the CA's time, unless the certificate that it gave is not valid then."""
        ahead, crt = self.client and self.client.skew or 0, facts.live_crt
        theirs = time.time() + ahead
        if abs(ahead) > CLOCK_SECONDS and fit(facts.live_key, crt) and not (
                crt.not_before - HOUR <= theirs <= crt.not_after):
            return [f"its clock says {utc(theirs)}, when '{self.config.live}' is not valid"]
        self.ahead = ahead if abs(ahead) > 2 else 0  # it tells whole seconds
        return []

    def look_at_ari(self, facts: Facts) -> list:
        """Ask the CA when it wants the live certificate renewed. Whatever comes of that, nothing is
        wrong."""
        self.note(ari=self.ari_note(facts.state.get("ari"), read_file(self.line.live.crt)))
        return []

    def ari_note(self, known: dict, text: bytes) -> dict:
        """The note of when the CA wants a certificate (PEM) renewed; None if it does not tell that.
        known: the note before."""
        der, wait = certificates(text)[0], None
        note = {"crt": sha256(der), "directory": self.config.directory_url, "start": 0.0,
                "end": 0.0, "when": 0.0, "url": ""}
        note = known if known and known["crt"] == note["crt"] else note
        try:
            if not self.open_client().directory("renewalInfo") or not renewal_id(der):
                return None
            found = self.client.renewal_window(der)
            start, end, url, wait = [found[name] for name in ("begin", "end", "url", "wait")]
            if (start, end) != (note["start"], note["end"]):
                import random
                note = {**note, "start": start, "end": end, "when": random.uniform(start, end)}
            if url and url != note["url"]:
                say(f"Why the CA wants '{self.config.live}' renewed: {printable(url)}")
            note = {**note, "url": url}
        except (ValueError, OSError) as error:
            wait = getattr(error, "retry_after", None)
            self.log(reason(error))
        wait = min(max(HOUR, 6 * HOUR if wait is None else wait), DAY)
        return {**note, "until": time.time() + self.ahead + wait}

    def look_at_dns(self, facts: Facts) -> list:
        """Note which keys DNS shows, and since when."""
        look = dns_look(self.config, facts)
        now = time.time() + self.ahead
        begin = now if self.looks.get("clock") == [] else 0  # no time starts by another clock
        unseen = [place for place, good in look.found.items()
                  if good is None and not place.endswith(" the resolver")]
        self.looks.update(ttl=[] if look.ttl >= 0 else look.wrong, fit=look.foreign, unseen=unseen)
        self.note(dns=dns_note(self.config, facts, look, now, begin))
        return look.wrong

    def look_at_served(self, facts: Facts) -> list:
        """Note which keys services show; they may take a moment to reload."""
        end = time.monotonic() + 15
        for pause in (1, 1, 1, 1, 0):
            wrong = outside(self.config, look_at_services, facts.live_key.spki)
            if not wrong or time.monotonic() > end:
                break
            time.sleep(pause)
        self.note(served={"key": facts.live_key.spki, "services": self.config.served,
                          "wrong": wrong, "at": time.time() + self.ahead})
        return wrong

    # -- steps, one method a verb; they raise OSError, and Problem or AcmeError where it says so

    def do_drop(self, facts: Facts, what: str):
        """Remove a staged file."""
        os.unlink(getattr(self.line.staging, what))
        sync_folder(getattr(self.line.staging, what))

    def do_discard(self, facts: Facts, what: str):
        """Move a staged file to the backups."""
        back_up(self.line, getattr(self.line.staging, what))
        self.do_drop(facts, what)

    def do_rename(self, facts: Facts, what: str):
        """Make a staged file live that a crash left."""
        swap(self.line, None, what)
        self.done.add(("unstage", ""))

    def do_unstage(self, facts: Facts, what: str):
        """Make the staged pair live."""
        swap(self.line, facts.now, "key", "crt")
        self.done.add(("unstage", ""))

    def do_stage(self, facts: Facts, what: str):
        """Make the next private key. Raises Problem."""
        check_claims(self.line, True)
        make_key(self.line.staging.key, wanted_type(self.config, facts.live_key),
                 self.config.key_length, self.line.live.key, facts.now)
        self.done.add(("stage", ""))

    def do_publish(self, facts: Facts, what: str):
        """Start the staging time, or go on with it."""
        since = published_since(facts)
        self.note(keychange={"keys": keys_of(facts), "at": facts.now if since is None else since})

    def do_hook(self, facts: Facts, what: str):
        """Run a hook, and note that it is done. Raises Problem."""
        self.done.add(("hook", what, facts.live_key.spki))
        if what == "post-keychange" and facts.looks.get("unseen"):
            # What it mends there unseen, caches may hold: for twice the TTL after its end
            dns = facts.state["dns"]
            until = time.time() + self.ahead + self.config.hook_timeout + 2 * max(0, dns["ttl"])
            self.note(dns={**dns, "until": max(dns["until"], until)})
        run_hook(self.line, has_pair(facts), what)
        if what == "post-certchange":  # which may edit the file
            self.note(certchange=sha256(read_file(self.line.live.crt) or b""))
        else:
            self.do_publish(facts._replace(now=time.time() + self.ahead), what)

    def do_request(self, facts: Facts, what: str):
        """Request the certificate of a key and install it; note a failure. Raises Problem."""
        key = facts.live_key if what == "live" else facts.staging_key
        self.done.add(("request", key.spki))
        before, error, self.notes = facts.state.get("retry"), None, {}
        # Written before the order, so that a program that dies at it does not order for ever
        self.note(retry=self.retry_note(facts, OSError("the run was cut off")))
        try:
            self.obtain(facts, what)
            self.notes.update(retry=None, order=None)
        except Stopped:
            self.note(**{"retry": before, **self.notes})
            raise
        except (Problem, ValueError, OSError) as failure:
            error, self.notes["retry"] = failure, self.retry_note(facts, failure)
        try:
            self.note(**self.notes)
        except OSError as failure:
            error = error or failure
        if error:
            retry = self.notes["retry"]
            again = f", cron tries again from {utc(retry['after'])}" if retry else ""
            raise Problem(f"no certificate '{getattr(self.line, what).name}': {reason(error)}; "
                          f"what is there stays{again}")

    def obtain(self, facts: Facts, what: str):
        """Get a certificate by the order that an earlier run left, or by a new one, and install it
        (RFC 8555 section 7.4). Raises AcmeError, OSError."""
        config, pair = self.config, getattr(self.line, what)
        key, crt = (facts.live_key, facts.live_crt) if what == "live" else facts[2:4]
        note, known = self.order_note(facts, key, crt)
        client, csr = self.open_client(), make_csr(pair.key, config.domains)
        saved = back_up(self.line, pair.crt) if crt else ""  # without room nothing is ordered
        solver = solver_of(
            config, has_pair(facts), self.note,
            lambda text: complain(config.file, text), self.log)
        # What could not be removed before stays noted, until it can
        solver.paths, solver.records = [
            list(facts.state.get(name, ())) for name in ("challenges", "records")]
        try:
            if known:
                self.note(order={**note, "url": known})
            text, url = client.obtain(
                config.domains, csr, solver, known,
                lambda url: self.note(order={**note, "url": url}), config.profile,
                self.replaced(facts, what), config.preferred_chain)
            # If it cannot be installed, that is not the CA's fault: it is downloaded until it can
            self.notes["order"] = {**note, "url": url, "tries": 0}
            self.install(facts, pair, crt, text)
            if what == "live" and client.directory("renewalInfo"):
                self.notes["ari"] = self.ari_note(None, text.encode())
        except BaseException as error:
            if saved and read_file(saved) == read_file(pair.crt):  # it was not replaced
                remove(config, [saved])
            self.notes.update({"order": None} if isinstance(error, OrderFailed) else {})
            raise
        finally:
            self.believe_clock(facts)
            self.notes.update(self.account_note(), challenges=list(solver.paths) or None,
                              records=list(solver.records) or None)

    def order_note(self, facts: Facts, key: Key, crt: Crt) -> tuple:
        """(note of the order for a key, in the place of a Crt or of none; URL of such a one that an
        earlier run left, or None)."""
        note = {"key": key.spki, "names": self.config.domains,
                "directory": self.config.directory_url, "crt": crt.leaf if crt else ""}
        known = facts.state.get("order", {"tries": 0})
        again = {**known, **note} == known and known["tries"] < 3
        note["tries"] = known["tries"] + 1 if again else 0
        return note, known["url"] if again else None

    def replaced(self, facts: Facts, what: str) -> str:
        """How to call the certificate that an order replaces, None if the CA does not know it."""
        crt, here = facts.live_crt, self.config.directory_url
        ours = crt and facts.state.get("issued", {}).get(crt.leaf) == here
        if what == "live" and ours and self.client.directory("renewalInfo"):
            return renewal_id(certificates(read_file(self.line.live.crt))[0])

    def install(self, facts: Facts, pair: Pair, crt: Crt, text: str):
        """Put a chain (PEM) that the CA sent in the place of a Crt, or of none. Raises OrderFailed
        if it is no newer one, OSError."""
        der, here = pem(text)[0][1], self.config.directory_url
        leaf, givers = parse_certificate(der), facts.state.get("issued", {})
        older = crt and givers.get(crt.leaf) == here and leaf.not_before < crt.not_before
        if older or crt and crt.leaf == sha256(der):
            raise OrderFailed("the CA sent the present certificate again, or one from before it")
        if crt and leaf.not_after < crt.not_after:
            say(f"The new certificate ends earlier than the one before, {utc(leaf.not_after)}")
        write_file(pair.crt, text.encode(), 0o644)
        kept = {leaf: givers[leaf] for leaf in leaves(facts) if leaf in givers}
        self.notes["issued"] = {**kept, sha256(der): here}

    def open_client(self) -> Client:
        """The Client of this run, with the account's URL if that is noted for the same account.
        Raises AcmeError, OSError, Problem."""
        config = self.config
        if self.client is None:
            make_account_key(config)
            settle_account_key(config, self.log)
            about = (config.directory_url, config.account_key, config.proxy, config.ca_bundle,
                     config.eab_kid, config.run_as)
            if about not in self.clients:
                self.clients[about] = new_client(config, self.log)
            self.client = client = self.clients[about]
            known, found = read_state(self.line).get("account", {"url": None}), client.account
            client.config, client.contact, client.account = config, config.contact, known["url"]
            if self.account_note() != {"account": known}:
                client.account = found
        return self.client

    def account_note(self) -> dict:
        """The note of the account's URL, and of what it depends on; {} as long as there is none."""
        client = self.client
        return {"account": {
            "directory": client.url, "contact": client.contact, "url": client.account,
            "thumbprint": client.key.thumbprint}} if client.account else {}

    def retry_note(self, facts: Facts, error: Exception) -> dict:
        """The note of a request that failed by this error: when the next one may be made."""
        old, crt = facts.state.get("retry", {}), facts.live_crt
        about = subject(self.config, facts)
        count = old["count"] + 1 if {**old, **about} == old else 1
        # What broke on this machine (a full disk) did not bother the CA: one try more
        seconds = RETRY_SECONDS[min(count if isinstance(error, AcmeError) else count - 1, 4)]
        wait, server = getattr(error, "retry_after", None), 0
        if wait is not None:
            left = crt.not_after - facts.clock if fit(facts.live_key, crt) else 1e9
            seconds = min(wait, RETRY_AFTER_SECONDS, max(HOUR, left / 4))
            server = error.status
        now, after = time.time(), time.time() + seconds
        if old and old["server"] and old["directory"] == self.config.directory_url and (
                after < old["after"] <= now + RETRY_AFTER_SECONDS):
            after, server = old["after"], old["server"]  # what the CA said before stands
        return {**about, "count": count, "after": after, "error": reason(error), "server": server}

    # -- the end

    def tell(self, text: str, facts: Facts = None, topic: str = "", status: int = 1):
        """Tell what is not as it should be, on stderr; with status None (else the exit status that
        it makes) news on stdout. With a topic, it is told when it changes and once a day; by hand
        at once."""
        now, before = time.time(), facts and facts.state.get("told", {}).get(topic)
        known = before and before["text"] == text and 0 <= now - before["at"] < LOOK_SECONDS
        if topic:
            self.told[topic] = before if known else {"text": text, "at": now}
        self.status = max(self.status, status or 0)
        again = any(text in before for before in self.heard)  # as of a disk that is full
        if (not known or self.force) and not again:
            self.heard.append(text)
            say(text) if status is None else complain(self.config.file, text)

    def conclude(self, facts: Facts, plan: Plan) -> int:
        """Tell what is held back, and by what. Returns the exit status. Raises OSError."""
        for topic, text, status in troubles(self.config, facts, plan):
            self.tell(text, facts, topic, status)
        skewed = skew_words(self.client and self.client.skew)
        if skewed and "clock" not in self.told:
            self.tell(skewed, facts, "skew", 0)
        self.tell_news(facts, plan)
        retry, undone = facts.state.get("retry"), [step for step, *_ in plan.held] + [*self.failed]
        if retry and not retry["server"] and "request" not in {step[0] for step in undone}:
            retry = None  # of a run that died, or by hand: nothing is due
        try:
            self.note(told=self.told or None, retry=retry)
        except OSError:
            if not self.failed:  # else it was told why
                raise
        return self.status

    def tell_news(self, facts: Facts, plan: Plan):
        """Tell what comes of what was done in this run."""
        config, staged = self.config, ("stage", "") in self.done
        ttl = facts.state.get("dns", {"ttl": 0})["ttl"]
        if config.tlsa and (self.force == "init" or staged) and (
                2 * ttl > config.staging_hours * HOUR):
            say("staging-hours is less than twice the TTL of the TLSA records: a new key waits for "
                f"{2 * ttl} seconds")
        for step in plan.later if self.done and config.tlsa else ():
            if step.verb == "unstage":
                say(f"{text_of(config, step, facts)}, {utc(step.when)}")
        if self.force == "new-key" and facts.staging_key and not staged:
            say(f"'{config.staging}' is staged already; {next_words(config, facts, plan)}")


def skew_words(skew: float) -> str:
    """How far our clock is off, if the CA's is ahead by so many seconds, "" if that is little."""
    if abs(skew or 0) <= CLOCK_SECONDS:
        return ""
    days, way = round(abs(skew) / DAY, 2), "behind" if skew > 0 else "ahead"
    return f"your clock is {days:g} days {way} (the CA's says {utc(time.time() + skew)})"


def new_client(config: Config, log) -> Client:
    """A Client for the account of a config, without a key as long as there is none. Raises
    AcmeError, OSError."""
    key = AccountKey(config.account_key) if os.path.lexists(config.account_key) else None
    eab = None
    if config.eab_kid:
        with open(config.eab_hmac_key, encoding="ascii", errors="replace") as file:
            eab = MacKey(config.eab_kid, file.read())
    if config.run_as:
        return FarClient(config, key, eab, log)
    return Client(config.directory_url, key, contact=config.contact, proxy=config.proxy,
                  ca_bundle=config.ca_bundle, eab=eab, log=log, news=say)


def settle_account_key(config: Config, log):
    """If a change of the account's key was cut off, ask the CA which one holds now. Raises
    AcmeError, OSError."""
    file, new = config.account_key, config.account_key + ".new"
    if not os.path.lexists(new):
        return
    with lock(file + ".lock", LOCK_SECONDS):
        if os.path.lexists(new):  # it was not just going on
            try:
                holds = new_client(config._replace(account_key=new), log).exists()
            except AcmeError as error:
                raise AcmeError(f"is {new} the account's key by now? {error}", error.status,
                                error.type, error.retry_after)
            if holds:
                os.replace(new, file)
            else:
                os.unlink(new)
            sync_folder(file)


def change_account_key(config: Config, client: Client):
    """Give the account another key, which is on disk before the CA is told. Raises AcmeError,
    OSError, Problem."""
    file, new = config.account_key, config.account_key + ".new"
    client.offered("keyChange")  # else a key would be left that each later run asks about
    with lock(file + ".lock", LOCK_SECONDS):
        make_key(new, "ec-p256", like=file)
        client.change_key(AccountKey(new))
        os.replace(new, file)
        sync_folder(file)
    say(f"{file} is the account's new key")


def dns_look(config: Config, facts: Facts) -> Look:
    """What look_at_dns() shows, where it may talk to the network. Raises AcmeError."""
    return outside(config, look_at_dns, shown_keys(config, facts), must_hold(config, facts))


def dns_note(config: Config, facts: Facts, look: Look, now: float, begin: float) -> dict:
    """The note of a Look at a time (seconds since 1970); begin: as of since_when()."""
    keys = keys_of(facts)
    before = facts.state.get("dns", {"keys": None, "ttl": -1, "until": 0, "fits": []})
    known = before["found"] if before["keys"] == keys and past(facts, before) else {}
    ttl, until = before["ttl"], before["until"]
    if until and not past(facts, before):  # by a clock that was wrong: as long, but from now
        until = now + max(0, until - before["at"])
    if 0 <= look.ttl < ttl:  # records without a key may have been given out until it was found
        until = max(until, (seen_since(config, facts) or now) + 2 * ttl)
    fits = before["fits"] if look.foreign else [
        key for key in must_hold(config, facts) if key == keys[0] or not look.wrong]
    return {"keys": keys, "asked": asked(config), "found": since_when(look, known, begin),
            "until": until, "ttl": look.ttl if look.ttl >= 0 else ttl, "fits": fits, "at": now,
            "wrong": look.wrong, "outage": look.outage}


def since_when(look: Look, known: dict, begin: float) -> dict:
    """{place: since when it has the keys, or 0} by a Look, and what was known before of the same
    keys. begin: the time of what is new."""
    # Who does not answer holds the key back, but may go on as it was
    found = dict(known) if None in look.found.values() else {}
    for place, good in look.found.items():
        since = known.get(place, 0) or (begin if good else 0)
        found[place] = 0 if good is False else since  # caches may have that from now on
    return found


def troubles(config: Config, facts: Facts, plan: Plan) -> list:
    """[(topic, text, exit status)] of what is held back and what is strange, for people; a topic
    names what it is about, status None is news."""
    held = [held_back(config, facts, *row) for row in plan.held]
    made = facts.live_key.made
    if made > facts.now + CLOCK_SECONDS:
        held.append(("future", f"the live key's file is of {utc(made)}, the future: touch it", 1))
    return list(dict.fromkeys(row for row in held if row))


def held_back(config: Config, facts: Facts, step: Step, need: str, wrong: list):
    """What troubles() tells of a Step that is held back; None if it was told before."""
    text = "; ".join(wrong)
    if need in ("retry", "clock") and any(done[0] == "request" for done in facts.failed):
        return None
    if need == "-k":
        about = facts.live_crt.sha256 if step.what == "post-certchange" else keys_of(facts)
        return f"{step.what} {about}", f"Owed: {step.what} (run with -k)", None
    if need in ("once", "retry"):
        return need, f"{text_of(config, step, facts)} is due ({step.why}); {text}", 1
    if need == "clock":
        return need, f"no key is made or goes live before the CA says what time it is: {text}", 1
    if need == "fit":
        return need, (f"{text}, so clients would refuse this one: put their key in the place of "
                      f"{config.keys}/{config.live}.key, or publish this one beside it first (see "
                      "tlsa), or use init --now"), 1
    if need == "served":
        kept = "an old key stays in DNS, " if config.post_keychange else ""
        return need, f"{text}; {kept}the next run goes on", 1
    return ("dns", *held_by_dns(config, facts, text)) if need in ("dns", "ttl") else None


def held_by_dns(config: Config, facts: Facts, text: str) -> tuple:
    """(text, exit status) as in troubles() of what DNS holds back."""
    dns = facts.state.get("dns", {"outage": [], "ttl": 0})
    if facts.force in ("init", "now"):
        return f"Not yet in DNS: {text}", None
    if dns["outage"] or not has_pair(facts):
        return text, 1
    since = published_since(facts) or facts.staging_key.made
    late = facts.now > since + max(HOUR, 2 * dns["ttl"])
    return f"'{config.staging}' waits: {text}, to be tried again", 1 if late else None


# ---- Commands: the command line -----------------------------------------------------------------


def check_machine(config: Config, hooks: bool, init: bool):
    """Raise Problem unless openssl, the folders (for init: what is there of them), the CA bundle
    and the hooks (if they may run) can be used, and be changed by nobody else. Raises OSError."""
    for function, *args in machine_checks(config, hooks, init):
        function(*args)


def machine_checks(config: Config, hooks: bool, init: bool) -> list:
    """What check_machine() calls: [(function, its arguments)]."""
    return [
        (check_openssl,),
        *[(check_hook, name, option(config, name)) for name in (
            "challenge-hook", "post-certchange", "post-keychange")[:3 if hooks else 1]],
        *[(check_folder, name, option(config, name), init) for name in (
            "account-key", "certs", "keys", "backups")],
        *[(check_folder, "challenge-dir", folder, init) for folder in [config.challenge_dir]
          if config.challenge == "http-01"],
        *[(check_user, user) for user in [config.run_as] if user],
        *[(check_secret, "eab-hmac-key", file) for file in [config.eab_hmac_key] if file],
        *[(check_bundle, file, init) for file in [config.ca_bundle] if file]]


def check_openssl():
    """Raise Problem unless openssl is where programs are looked for."""
    if not any(os.access(os.path.join(folder, "openssl"), os.X_OK)
               for folder in os.environ["PATH"].split(":")):
        raise Problem("there is no openssl in PATH: install it")


def check_user(user: str):
    """Raise Problem unless there is a user of this name, and we may become it."""
    import pwd
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise Problem(f"run-as: there is no user {user}")
    if os.geteuid() not in (0, uid):
        raise Problem(f"run-as: only root can run anything as {user}")


def check_secret(name: str, file: str):
    """Raise Problem if others can read or change a file (name: its key in the config); OSError."""
    check_owner(name, file)
    if os.stat(file).st_mode & 0o007:
        raise Problem(f"{name}: {file} can be read by others: chmod 600")


def check_bundle(file: str, init: bool):
    """Raise Problem unless the CA bundle is safe; ToolError if (for init) it cannot be loaded: else
    that is done when it is needed, for it takes its time."""
    check_owner("ca-bundle", file)
    if init:
        tls_context(file)


def check_folder(name: str, file: str, init: bool):
    """Raise Problem unless a folder (name: its key in the config), or that of the account key, can
    be written to (for init: what is there of it), and be changed by nobody else."""
    if name != "challenge-dir":  # its files are made with the rights of its owner
        check_owner(name, existing(file))
    if name == "account-key" and os.path.exists(file):
        return  # there is nothing to write
    folder = os.path.dirname(file) if name == "account-key" else file
    folder = existing(folder) if init else folder
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise Problem(f"{name}: {folder} is no folder that this user can write to: run init as root"
                      ", or change its owner")


def existing(file: str) -> str:
    """What is there of a path: itself, or the nearest folder above it."""
    return file if os.path.lexists(file) else existing(os.path.dirname(file))


def check_hook(name: str, file: str):
    """Raise Problem unless a hook, if there is one, can be run; OSError."""
    if not file:
        return
    if not os.path.isfile(file) or not os.access(file, os.X_OK):
        raise Problem(f"{name}: {file} is missing, or no program that can be run (chmod +x)")
    check_owner(name, file)
    with open(file, "rb") as stream:
        first = stream.readline(1000).decode("utf-8", "replace").rstrip("\n")
    program = re.split("[ \t]", first[2:].strip(" \t"))[0] if first.startswith("#!") else file
    if not os.access(program, os.X_OK):
        raise Problem(f"{name}: the first line of {file} names {printable(program)}, which is not "
                      "there" + (": save it with Unix line ends" if program[-1:] == "\r" else ""))


def check_claims(line: Line, staging: bool):
    """Raise Problem if another config that still exists has files of this line: its live files, or
    (staging: is there a staged key, or to be one) its staging files. Raises OSError."""
    folder, ours = line.config.certs, {*line.live[1:], *line.staging[1:]}
    for state in [f"{folder}/{name}" for name in sorted(os.listdir(folder))
                  if name.endswith(".state")] if staging else [line.state]:
        try:
            file = json.loads(read_file(state) or b"{}")["config"]
            other = line if os.path.samefile(file, line.config.file) else Line(read_config(file))
        except (OSError, ValueError, LookupError, TypeError, RecursionError, Problem):
            continue  # no config, or none that could claim anything
        shared = ours & {*other.live[1:], *other.staging[1:]}
        if other is not line and shared:
            raise Problem(f"{printable(file)} has the same files ({', '.join(sorted(shared))}): "
                          "give each line its own by live and staging, or remove one config")


def act(config: Config, args) -> int:
    """init, renew and cron. Returns the exit status. Raises Problem, OSError."""
    line, init = Line(config), args.force == "init"
    if args.force:
        check_edited(config)
    check_machine(config, args.hooks, init)
    if init and os.path.lexists(config.account_key):
        AccountKey(config.account_key)  # else it would be found to be none when it is needed
    for folder, mode in ((config.certs, 0o755), (config.keys, 0o710), (config.backups, 0o700),
                         (os.path.dirname(config.account_key), 0o700),
                         (config.challenge_dir, 0o755)) if init else ():
        if folder:
            make_folder(folder, mode)
    with lock(line.lock):
        check_claims(line, os.path.lexists(line.staging.key))
        clean_up(line)
        run = Run(line, args.hooks, args.force, protocol_log(args.verbose), args.clients)
        if init and not os.path.lexists(line.live.key):
            make_first_key(run)
        if init and args.now:
            run.done.add(("fit", ""))
        known = "config" in read_state(line)
        run.note(config=config.file)
        status = run.reconcile()
        if init and not status and (run.done or not known):
            tell_next(line)
        return status


def make_first_key(run: Run):
    """Make account key and live key of a new line. Raises OSError, Problem."""
    config = run.config
    make_account_key(config)
    kind = config.key_type or ("rsa" if config.key_length else "ec-p256")
    say(f"Making private key '{config.live}' ({kind})")
    make_key(run.line.live.key, kind, config.key_length)
    run.done.add(("key", ""))


def tell_next(line: Line):
    """Tell, at the end of init, what is there and what to do next. Raises OSError."""
    _, key, file = line.live
    crt, info = read_crt(file), os.stat(key)
    for link in filter(os.path.islink, (key, file)):
        say(f"{link} is a link: who changes {os.path.realpath(link)} changes this line")
    if info.st_mode & 0o040:
        say(f"{key} can be read by its group ({info.st_gid}), as its successors will be")
    if not line.config.post_certchange:
        say("Services are not reloaded when the certificate changes: there is no post-certchange")
    if fit(read_key(key), crt):
        chain = ", without its chain" if crt.chain == 1 else ""
        say(f"{file} is there until {utc(crt.not_after)}{chain}. Next: let services use it with "
            f"{key}, and root's crontab run cron")


def show(config: Config, args) -> int:
    """Tell what cron or renew would do first, and why. Returns the exit status. Raises Problem,
    OSError."""
    run = Run(Line(config), args.hooks, args.force)
    facts = run.facts()._replace(looks={"clock": [], "ari": []})
    say(next_words(config, facts, decide(config, facts), "Nothing; next: "))
    return 0


def next_words(config: Config, facts: Facts, plan: Plan, nothing: str = "") -> str:
    """What is done next; if that is nothing now, what comes later, and when."""
    if plan.step:
        return f"{text_of(config, plan.step, facts)}: {plan.step.why}"
    for step, _, wrong in plan.held:
        return f"{nothing}{text_of(config, step, facts)}, which waits: {'; '.join(wrong)}"
    first = min((step for step in plan.later if step.verb != "watch"), key=lambda step: step.when)
    return f"{nothing}{text_of(config, first, facts)}, {utc(first.when)}"


def status(config: Config, args) -> int:
    """Tell what is there and what comes next, --json as an object. Returns 1 if something is
    overdue or failed, else 0. Raises Problem, OSError."""
    facts = Run(Line(config), True).facts()
    noted = {name: facts.state[name]["wrong"] for name in ("dns", "served") if name in facts.state}
    facts = facts._replace(looks={**noted, "clock": [], "ttl": [], "fit": [], "ari": []})
    plan = decide(config, facts)
    wrong, coming = troubles(config, facts, plan), next_words(config, facts, plan)
    # What cron will do tonight is not yet overdue
    crt, step = facts.live_crt, plan.step
    grace = min(1.5 * DAY, (crt.not_after - crt.not_before) / 10) if crt else 0
    late = step and step.verb != "look" and facts.now - step.when > grace
    result = int(bool(late) or any(exit_status for *_, exit_status in wrong))
    problems = [text for _, text, _ in wrong] + ([f"overdue: {coming}"] if late else [])
    shown = status_object(config, facts, plan, iso if args.json else utc)
    if args.json:
        say(json.dumps({**shown, "status": result, "problems": problems}))
    else:
        say("\n  ".join([*status_words(config, shown), *problems,
                         *([] if late else [f"next: {coming}"])]))
    return result


def iso(seconds: float) -> str:
    """Seconds since 1970 as a text such as 2026-11-23T06:32:00Z (ISO 8601)."""
    return utc(seconds, "%Y-%m-%dT%H:%M:%SZ")


def status_object(config: Config, facts: Facts, plan: Plan, stamp) -> dict:
    """What there is of a line: examples/status.md describes it. stamp: makes the text of a time
    (seconds since 1970)."""
    line, retry = Line(config), facts.state.get("retry")
    failed = retry and (blocked_until(config, facts) or is_about(config, facts, retry))
    owed = services_lack_certificate(config, facts), dns_lacks_keys(config, facts)
    steps = filter(None, [plan.step, *[step for step, *_ in plan.held], *plan.later])

    def since(seconds):
        return None if seconds is None else stamp(seconds)

    return {
        "config": config.file, "version": __version__,
        "domains": config.domains, "directory_url": config.directory_url,
        "live": pair_object(facts, line.live, facts.live_key, facts.live_crt, stamp),
        "staging": pair_object(facts, line.staging, facts.staging_key, facts.staging_crt, stamp),
        "published": since(published_since(facts)),
        "seen_in_dns": since(seen_since(config, facts)) if config.tlsa else None,
        "renewal_wanted": since(wanted_time(config, facts)) if facts.live_crt else None,
        "hooks_owed": [step.what for step in owed if step],
        "evidence": {name: {"looked_at": stamp(facts.state[name]["at"]),
                            "wrong": facts.state[name]["wrong"]}
                     for name, wanted in (("dns", config.tlsa), ("served", config.served))
                     if wanted and name in facts.state},
        "last_failure": {"error": retry["error"], "next_request": stamp(retry["after"])}
                        if failed else None,
        "held": [{"step": text_of(config, step, facts), "why": step.why, "wrong": wrong}
                 for step, _, wrong in plan.held],
        "next": [{"step": text_of(config, step, facts), "why": step.why,
                  "when": stamp(max(step.when, facts.now))}
                 for step in sorted(steps, key=lambda step: step.when)]}


def pair_object(facts: Facts, pair: Pair, key: Key, crt: Crt, stamp):
    """What there is of a pair, None if there is no key. stamp: as of status_object()."""
    return key and {
        "key": {"path": pair.key, "type": key.kind, "bits": key.bits, "made": stamp(key.made),
                "days_old": round((facts.now - key.made) / DAY), "spki_sha256": key.spki},
        "certificate": crt and {
            "path": pair.crt, "names": crt.names, "issuer": crt.issuer, "serial": crt.serial,
            "not_before": stamp(crt.not_before), "not_after": stamp(crt.not_after),
            "days_left": int((crt.not_after - facts.now) // DAY), "fits_key": fit(key, crt)}}


def status_words(config: Config, shown: dict) -> list:
    """What status_object() tells, for people."""
    lines = [f"{config.file}: {' '.join(config.domains)}"]
    for name, pair in (config.live, shown["live"]), (config.staging, shown["staging"]):
        lines += pair_words(name, pair["key"], pair["certificate"]) if pair else []
    crt, failure = shown["staging"] and shown["staging"]["certificate"], shown["last_failure"]
    staged = crt and crt["fits_key"]
    return lines + [label + text for label, text in (
        (f"the CA wants '{config.live}' renewed ", shown["renewal_wanted"]),
        (f"'{config.staging}' is published since ", staged and shown["published"]),
        (f"'{config.staging}' is seen in DNS since ", staged and shown["seen_in_dns"]),
        ("last failure: ", failure and "; next request from ".join(failure.values())),
        ("hooks owed: ", ", ".join(shown["hooks_owed"])),
        *[(f"{LOOKS[name]}, looked at {note['looked_at']}: ",
           "; ".join(note["wrong"]) or "as it must be")
          for name, note in shown["evidence"].items()]) if text]


def pair_words(name: str, key: dict, crt: dict) -> list:
    """What pair_object() tells, for people."""
    until = f"none for this key: {crt['path']}" if crt else "none"
    if crt and crt["fits_key"]:
        until = (f"until {crt['not_after']} ({crt['days_left']} days), for "
                 f"{' '.join(crt['names'])}, by {crt['issuer'] or 'a CA without a name'}: "
                 f"{crt['path']}")
    kind = words_of(key["type"], key["bits"])
    return [f"'{name}' key: {kind}, made {key['made']} ({key['days_old']} days ago), public key "
            f"SHA-256 {key['spki_sha256']}: {key['path']}",
            f"'{name}' certificate: {until}"]


def tlsa(config: Config, args) -> int:
    """Tell the records that DNS must hold now, as lines of a zone file, --json or --nsupdate, or
    (--check) whether it does. Returns the exit status. Raises Problem, OSError."""
    facts = Run(Line(config)).facts()
    if not config.tlsa:
        raise Problem("tlsa is not set: it names the records, such as _25._tcp.mx.example.org", 2)
    if args.check:
        problems = tlsa_problems(config, facts)
        say("\n".join(problems) or "DNS holds what it must")
        return 1 if problems else 0
    names = list(dict.fromkeys(
        printable(outside(config, tlsa_owner, name)) + "." for name in config.tlsa))
    keys, ttl = must_hold(config, facts), args.ttl
    lines = [f"{name} {ttl} IN TLSA 3 1 1 {key}" for name in names for key in keys]
    if args.nsupdate:
        lines = [line for name in names for line in [  # one at a time: they may be of several zones
            f"update delete {name} TLSA",
            *[f"update add {name} {ttl} TLSA 3 1 1 {key}" for key in keys], "send"]]
    if args.json:
        lines = [json.dumps([{"name": name, "ttl": ttl, "usage": 3, "selector": 1,
                              "matching_type": 1, "data": key} for name in names for key in keys])]
    say("\n".join(lines))
    return int(1 in deaf)  # a hook must not take half of them for all


def account(config: Config, args) -> int:
    """Register, if need be, and tell what others must know of the account; or give it another key,
    or end it. Returns the exit status. Raises Problem, AcmeError, OSError."""
    check_machine(config, False, True)
    make_folder(os.path.dirname(config.account_key), 0o700)
    client = Run(Line(config), log=protocol_log(args.verbose)).open_client()
    client.register()
    if args.new_key:
        change_account_key(config, client)
    if args.deactivate:
        client.deactivate()
        say(f"The account {printable(client.account)} is deactivated, for good. Certificates stay "
            f"valid; for new ones, move {config.account_key} away and run init")
    else:
        # The CA's words are in all of them, and zone files take a line for what it says
        say("\n".join(printable(line, 10000) for line in account_words(config, client)))
    return 0


def account_words(config: Config, client: Client) -> list:
    """What others must know of an account: the lines that answer http-01 in web servers, and those
    of zone files (RFC 8657; dns-persist-01)."""
    thumbprint, issuers = client.key.thumbprint, persist_issuers(client)
    path = "/\\.well-known/acme-challenge/([A-Za-z0-9_-]+)$"
    method = "http-01" if config.challenge == "stateless" else config.challenge
    names = {base_name(name): name for name in sorted(config.domains, reverse=True)
             if not is_address(name)}  # of a name and its wildcard the wildcard
    return [
        f"account: {client.account}",
        f"terms of service: {member(client.meta(), 'termsOfService') or 'none'}",
        f"thumbprint: {thumbprint}",
        f'nginx: location ~ ^{path} {{ default_type text/plain; return 200 "$1.{thumbprint}"; }}',
        "apache: RewriteEngine on",
        f"apache: RewriteRule ^{path} - [E=TOKEN:$1,R=200,L]",
        f'apache: ErrorDocument 200 "%{{env:TOKEN}}.{thumbprint}"',
        *([] if issuers else ["CAA: this CA does not say by which name it issues"]),
        *[f'{base}. 3600 IN CAA 0 {tag} "{issuer}; accounturi={client.account}; '
          f'validationmethods={method}"' for base, name in names.items() for issuer in issuers
          for tag in ["issue"] + ["issuewild"] * (name != base)],
        *[persist_record(client, name, issuer) for name in names.values() for issuer in issuers
          if config.challenge == "dns-persist-01"]]


def revoke(config: Config, args) -> int:
    """Revoke a certificate, and tell what to do next. Returns the exit status. Raises Problem,
    AcmeError, OSError."""
    check_machine(config, False, False)
    line, compromised = Line(config), args.reason == "keycompromise"
    file = args.file or line.live.crt
    try:
        der = certificates(read_file(file) or b"")[0]
        spki = sha256(parse_certificate(der).spki)
    except ValueError as error:
        raise Problem(f"{file} is no certificate: {error}")
    run = Run(line, log=protocol_log(args.verbose))
    client, key = run.open_client(), key_file(config, spki) if compromised else ""
    if key:  # who has the key may say so, whoever ordered the certificate
        client = new_client(config._replace(account_key=key), client.log)
    elif not client.account:
        client.register()
    client.revoke(der, REASONS[args.reason])
    live = read_crt(line.live.crt)
    after = "; next: renew --new-key --now" if compromised else (
        "; next: renew" if live and live.leaf == sha256(der) else "")
    say(f"Revoked {file} ({args.reason}){after}")
    return 0


def key_file(config: Config, spki: str) -> str:
    """The file in keys or backups that holds the private key with this digest, "" if none does.
    Raises OSError."""
    for folder in config.keys, config.backups:
        for name in sorted(os.listdir(folder)):
            key = read_key(f"{folder}/{name}") if ".key" in name else None
            if key and key.spki == spki:
                return f"{folder}/{name}"
    return ""


def tlsa_problems(config: Config, facts: Facts) -> list:
    """What is wrong with the records in DNS. Raises OSError."""
    look = dns_look(config, facts)
    problems = look.wrong + look.brittle + [
        f"{record} fits no key of this line" for record in look.stale]
    if 2 * look.ttl > config.staging_hours * HOUR:
        problems.append(f"the records' TTL is {look.ttl} s: a new key waits for twice that, longer "
                        "than staging-hours")
    return problems


def check(config: Config, args) -> int:
    """Tell what is wrong, as far as that can be known before a certificate is asked for. Makes
    nothing but a file in challenge-dir, which is removed again. Returns the exit status."""
    problems = []
    if len(args.config) > 1:
        say(f"{config.file}:")
    for part, *more in [
            (check_edited, config), *machine_checks(config, True, True), (check_line, config),
            (check_ca, config, protocol_log(args.verbose)), (check_port_80, config),
            (check_dane, config), (outside, config, look_at_zones),
            (outside, config, look_at_mail)]:
        try:
            problems += part(*more) or ()
        except (Problem, ValueError, OSError) as error:
            problems.append(reason(error))
    say("\n".join(dict.fromkeys(problems)) or "Nothing is wrong")
    return 1 if problems else 0


def check_line(config: Config):
    """Raise Problem if the line's files cannot be used, OSError."""
    line = Line(config)
    if os.path.isdir(config.certs):
        check_claims(line, True)
    if os.path.lexists(line.live.key):
        Run(line).facts()


def check_ca(config: Config, log) -> list:
    """What is wrong with the CA, as far as it is asked without an account. Tells where its terms
    are. log: as of Client. Raises AcmeError, OSError."""
    client = new_client(config, log)
    client.ask_nonce()
    client.check_profile(config.profile)
    terms = member(client.meta(), "termsOfService") or "none"
    say(f"The CA answers. init agrees to its terms of service in your name: {printable(terms)}")
    unbound = client.meta().get("externalAccountRequired") is True and not (
        config.eab_kid or os.path.lexists(config.account_key))
    return list(filter(None, [UNBOUND if unbound else "", skew_words(client.skew)]))


def check_port_80(config: Config) -> list:
    """What is wrong with the ways to challenge-dir: a file of its own there is fetched from each
    address of each name (RFC 8555 section 8.3). Raises ToolError."""
    problems, token = [], b64(os.urandom(24))
    text, solver = token, Stateless()
    if config.challenge == "http-01":
        if not os.path.isdir(config.challenge_dir):
            return [f"challenge-dir: {config.challenge_dir} is not there yet: make it, so that it "
                    "can be seen whether port 80 leads there"]
        solver = HttpFiles(config.challenge_dir, trouble=problems.append)
    elif config.challenge == "stateless" and os.path.lexists(config.account_key):
        text = f"{token}.{AccountKey(config.account_key).thumbprint}"
    else:
        return []
    try:
        solver.present([("", token, text)])
        for name in config.domains:
            problems += [f"{name}: {wrong}: port 80 of each address must lead to "
                         f"{config.challenge_dir or 'the lines that account prints'}"
                         for wrong in outside(config, wrong_addresses, name, token, text)]
    finally:
        solver.remove()
    return problems


def check_dane(config: Config) -> list:
    """What is wrong with the records that `tlsa` names, and with services. Raises Problem,
    OSError."""
    line = Line(config)
    if not os.path.lexists(line.live.key):
        return outside(config, look_at_names)
    facts = Run(line).facts()
    return (tlsa_problems(config, facts) if config.tlsa else []) + (
        outside(config, look_at_services, facts.live_key.spki)
        if config.served and facts.live_crt else [])


def run_line(file: str, args) -> int:
    """Do the command for the line of a config file. args: of the command line. Returns the exit
    status."""
    try:
        file = os.path.abspath(file)
        config = read_config(file)
        check_owner("the config", file)
        if getattr(args, "dry_run", False):
            return show(config, args)
        return COMMANDS[args.command][0](config, args)
    except (Problem, ValueError, OSError) as error:
        complain(file, reason(error))
        result = error.status if isinstance(error, Problem) else 1
        if args.command == "status" and args.json:
            say(json.dumps({"config": file, "version": __version__, "status": result,
                            "problems": [reason(error)]}))
        return result


def stop(number: int, _):
    """Signal handler: end in order, and only once."""
    for other in SIGNALS:
        signal.signal(other, lambda *args: None)  # SIG_IGN would be inherited by hooks
    raise Stopped(number)


def prepare():
    """Make whatever cron, ssh and broken shells leave us in safe to work in."""
    import gc, resource
    gc.disable()  # a run is short: to look for garbage takes longer than it is worth
    fd = 0
    while fd < 3:  # no file of ours may become descriptor 0, 1 or 2
        fd = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(fd, fd < 3)
    os.close(fd)
    os.environ.setdefault("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, whatever we run "exits 0"
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)


COMMANDS = {  # name -> its function, options besides -c and -v, what it does, an example
    "check": (check, "hooks", "tell what is wrong, before the CA is asked for anything", "check"),
    "init": (act, "hooks now", "make folders, account key, live key and certificate; once, by hand",
             "init -k"),
    "renew": (act, "hooks dry-run new-key now", "obtain new certificates now; with --new-key a new "
              "private key, which is staged", "renew -k"),
    "cron": (act, "hooks dry-run", "do whatever is due, silent when nothing is; daily", "cron -k"),
    "status": (status, "hooks json", "tell what is there and what comes next; exit status 1 if "
               "something is overdue or failed", "status"),
    "tlsa": (tlsa, "hooks json nsupdate check", "tell the TLSA records that DNS must hold, as "
             "lines of a zone file", "tlsa --check"),
    "account": (account, "new-key deactivate", "tell the account's URL, and what web servers and "
                "DNS may show of it; with --new-key, give it another key", "account"),
    "revoke": (revoke, "", "revoke live.crt, or the certificate in FILE",
               "revoke --reason keycompromise")}
REASONS = {"unspecified": 0, "keycompromise": 1, "affiliationchanged": 3, "superseded": 4,
           "cessationofoperation": 5}
FLAGS = {"hooks": "run the hooks", "dry-run": "tell what would be done first, and why",
         "verbose": "tell each step of the protocol on stderr",
         "new-key": "stage a new private key instead", "account new-key": "give it another key",
         "deactivate": "end the account, for good",
         "now": "make the key live without waiting for DNS", "json": "tell the records as JSON",
         "status json": "tell it as a JSON object, for programs",
         "nsupdate": "tell the records as commands for nsupdate",
         "check": "compare DNS with them; exit status 1 if it differs"}
SHORT = {"hooks": ["-k"], "dry-run": ["-n"], "verbose": ["-v"]}
EPILOG = """exit status: 0 done or nothing to do, 1 something due could not be done, 2 wrong usage
or config, 75 another run holds the lock, 128+n ended by signal n"""


def form(prog: str):
    """How argparse is to write its help, without a look how wide the terminal is."""
    import argparse
    return argparse.HelpFormatter(prog, width=100)


def add_command(commands, name: str):
    """Add a command, with its options, to what argparse has for all of them."""
    _, options, text, example = COMMANDS[name]
    command = commands.add_parser(
        name, help=text, description=text, formatter_class=form, allow_abbrev=False,
        epilog=f"example: letsencrypt-tiny -c /etc/letsencrypt-tiny/example.org.conf {example}")
    command.add_argument("-c", "--config", action="append", required=True, metavar="CONFIG",
                         help="the line's config file; may be repeated")
    forms = command
    if name == "tlsa":
        forms = command.add_mutually_exclusive_group()
        command.add_argument("--ttl", type=number(1, 2**31 - 1, int), default=3600,
                             metavar="SECONDS", help="of the records (default 3600)")
    if name == "revoke":
        command.add_argument("--reason", choices=list(REASONS), default="unspecified")
        command.add_argument("file", nargs="?", metavar="FILE", help="a certificate (PEM)")
    for option in ["verbose", *options.split()]:
        (command if option in SHORT else forms).add_argument(
            *SHORT.get(option, []), "--" + option, action="store_true",
            help=FLAGS.get(f"{name} {option}", FLAGS[option]))


def parse_arguments(words: list):
    """The arguments (a namespace) of a command line. Raises Problem for wrong ones, SystemExit for
    --help."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise Problem(f"{message}; see --help", 2)

    parser = Parser("letsencrypt-tiny", description=__doc__, epilog=EPILOG, formatter_class=form,
                    allow_abbrev=False)
    parser.add_argument("--version", action="store_true",
                        help="tell the version, and the SHA-256 of this file")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", prog="letsencrypt-tiny")
    # Options may stand before the command, too
    at = next((at for at, word in enumerate(words) if word in COMMANDS and words[at - 1] not in (
        "-c", "--config")), None)
    if at is not None:
        words = [words[at], *words[:at], *words[at + 1:]]
    for name in COMMANDS if at is None else words[:1]:  # to make all takes its time
        add_command(commands, name)
    args = parser.parse_args(words)
    if not args.version and (not args.command or not all(args.config)):
        parser.error("give -c CONFIG and a command")
    if args.command == "renew" and args.now and not args.new_key:
        parser.error("--now needs --new-key")
    return args


def main(argv: list = None) -> int:
    """The command line. Returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["child"] and words[1:]:  # not for people: see child_of()
        child(words[1])
    try:
        prepare()
        args = parse_arguments(words)
        if args.version:
            say(f"letsencrypt-tiny {__version__}, SHA-256 {sha256(read_file(__file__))}")
            return 0
        args.force = args.command if args.command in ("init", "renew") else ""  # as in Facts
        if args.force == "renew" and args.new_key:
            args.force = "now" if args.now else "new-key"
        args.clients = {}  # as of Run
        return max([run_line(file, args) for file in args.config])
    except SystemExit as ended:  # --help
        return ended.code
    except Problem as problem:
        emit(2, f"letsencrypt-tiny: {problem}")
        return problem.status
    except Stopped as stopped:
        emit(2, f"letsencrypt-tiny: ended by {signal.Signals(stopped.args[0]).name}; the next run "
             "goes on")
        return 128 + stopped.args[0]
    finally:
        end_children()


if __name__ == "__main__":
    sys.exit(main())
