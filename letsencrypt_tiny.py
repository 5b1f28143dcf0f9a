#!/usr/bin/python3 -IS
"""letsencrypt-tiny keeps a line of certificates alive for services that publish TLSA records.

Services always use KEYS/live.key and CERTS/live.crt. A plain renewal keeps the key, so DNS stays
as it is. When the key grows old, its successor is staged: it gets its certificate, both keys are
published in DNS, and only when no cache can still hold the old records does it become live:

    live ----------------------------------------------+---> backups
    (key too old) -> staging.key -> staging.crt -> in DNS -> wait -> live

Every run looks at what IS (files, state, DNS), performs the first thing that is due, and looks
again. So a crash, a full disk or a broken hook needs no special code: the next run goes on.

Sections: text, config, facts, decision (pure), files (all writing), actions, commands.
"""
import configparser, fcntl, getopt, hashlib, json, os, re, signal, stat, sys, time
from collections import namedtuple

sys.path.append(os.path.dirname(os.path.realpath(__file__)))  # python3 -I leaves it out
try:
    from acme_tiny import (AccountKey, AcmeError, Client, HttpFiles, ToolError, key_kind, openssl,
                           parse_certificate, pem, printable, public_key, tlv, utc)
except ImportError:
    sys.exit("letsencrypt-tiny: copy acme_tiny.py beside this file, or use the single file")

__version__ = "1.0"
HOUR, DAY = 3600, 86400
# After failed requests; not quite a day, so that a daily cron job never comes a second too early.
RETRY_SECONDS = (0, 60, 600, 6000, DAY - 600)
RETRY_AFTER_SECONDS = 8 * DAY  # the longest a server can keep us away
CLOCK_SECONDS = HOUR           # the CA's clock and ours may differ by this

# ---- Text ---------------------------------------------------------------------------------------


class Problem(Exception):
    """What the administrator is told in one line; status: the exit status (int)."""

    def __init__(self, text, status=1):
        super().__init__(text)
        self.status = status


class Stopped(BaseException):
    """A signal asks us to end; its number is args[0]."""


deaf = set()  # file descriptors that nobody reads


def emit(fd, text):
    """Write a line (str) to a file descriptor; a closed, full or stuck one never stops us."""
    import select
    data = (text + "\n").encode("utf-8", "backslashreplace")
    try:
        for start in range(0, len(data), 4096):
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            if fd in deaf or poll.poll(5000) != [(fd, select.POLLOUT)]:
                raise OSError
            os.write(fd, data[start:start + 4096])
    except OSError:
        deaf.add(fd)


def say(text):
    """Tell an action on stdout."""
    emit(1, text)


def complain(file, text):
    """Tell an error about the line of the config file on stderr."""
    emit(2, "letsencrypt-tiny: %s: %s" % (file, text))


# ---- Config -------------------------------------------------------------------------------------


def read_names(text):
    """Host names as A-labels, lower case, without duplicates (list of str). Raises ValueError."""
    return list(dict.fromkeys(read_name(name.lower()) for name in text.split()))


def read_name(name):
    """A host name as A-labels; one on which IDNA 2003 and 2008 differ is refused."""
    if not name.isascii():
        import unicodedata
        from encodings import idna
        prepared = idna.nameprep(name)
        if (set(name) & set("\u00df\u03c2\u200c\u200d") or any(
                unicodedata.category(c) not in ("Ll", "Lo", "Lm", "Mn", "Mc", "Nd")
                for c in prepared if c not in "-.")):
            raise ValueError("%s: write its A-label (xn--...)" % name)
        name = ".".join(idna.ToASCII(label).decode() for label in prepared.split("."))
    if (not re.match(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*\Z", name)
            or len(name) > 253 or name.rpartition(".")[2].isdigit()):
        raise ValueError("%s is no host name%s" % (
            name, " (wildcards need dns-01)" if "*" in name else ""))
    return name


def read_path(text):
    """An absolute path without a trailing slash. Raises ValueError."""
    if not text.startswith("/") or not text.isprintable():
        raise ValueError(text)
    return re.sub("/+", "/", text).rstrip("/") or "/"


def matching(pattern, split=False):
    """A reader for text, or with split a list of words, that match a regular expression."""
    def read(text):
        words = text.split() if split else [text]
        for word in words:
            if not re.match(pattern + r"\Z", word):
                raise ValueError(word)
        return words if split else text
    return read


def number(low, high, kind=float):
    """A reader for a number from low to high."""
    def read(text):
        if not low <= kind(text) <= high:
            raise ValueError("%s is out of bounds" % text)
        return kind(text)
    return read


def read_contact(text):
    """Mail addresses as mailto URLs (list of str). Raises ValueError."""
    found = matching(r"[^@?#]+@[^@?#]+", split=True)(text.replace(",", " "))
    return [word if word.startswith("mailto:") else "mailto:" + word for word in found]


SERVER = r"[0-9A-Fa-f.:]+(@[0-9]{1,5})?"
PATHS = "an absolute path"
OPTIONS = (  # key, default (... means required), what is expected, reader
    ("domains", ..., "host names", read_names),
    ("key-type", None, "rsa, ec-p256 or ec-p384", matching("rsa|ec-p256|ec-p384")),
    ("key-length", None, "bits of an RSA key, 2048 to 4096", number(2048, 4096, int)),
    ("max-key-age-days", ..., "days, above 0", number(1e-9, 36500)),
    ("staging-hours", 0.0, "hours, 0 or more", number(0, 87600)),
    ("renew-cert-before-expiry-days", None, "days, above 0", number(1e-9, 36500)),
    ("post-certchange", None, PATHS + " of a program", read_path),
    ("post-keychange", None, PATHS + " of a program", read_path),
    ("hook-timeout", 600.0, "seconds, 1 or more", number(1, 86400)),
    ("account-key", ..., PATHS, read_path),
    ("challenge-dir", ..., PATHS, read_path),
    ("certs", ..., PATHS, read_path),
    ("keys", ..., PATHS, read_path),
    ("backups", ..., PATHS, read_path),
    ("live", "live", "a file name prefix", matching(r"(?!\.)[^/\s]+")),
    ("staging", "staging", "a file name prefix", matching(r"(?!\.)[^/\s]+")),
    ("directory-url", "https://acme-v02.api.letsencrypt.org/directory", "an https URL",
     matching(r"https://[!-~]+")),
    ("ca-bundle", None, PATHS, read_path),
    ("contact", None, "mail addresses", read_contact),
    ("proxy", None, "a URL such as http://proxy.example.org:3128", matching(r"https?://[!-~]+")),
    ("self-check", "warn", "no, warn or require", matching("no|warn|require")),
    ("tlsa", None, "names such as _25._tcp.mx.example.org",
     matching(r"_[0-9]+\._(tcp|udp|sctp)\.[A-Za-z0-9._-]+", split=True)),
    ("dns-resolver", None, "an address, or address@port", matching(SERVER)),
    ("dns-servers", None, "addresses, or address@port", matching(SERVER, split=True)),
    ("served", None, "host:port, or host:port/smtp and the like",
     matching(r"\S+:[0-9]{1,5}(/[a-z0-9]+)?", split=True)),
)
Config = namedtuple("Config", [row[0].replace("-", "_") for row in OPTIONS] + ["file"])


def read_config(file):
    """The Config in an INI file (path). Raises Problem: status 2 for a wrong text, else 1."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            text = stream.read()
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        parser.read_string("[:top:]\n" + text)
    except OSError as error:
        raise Problem("cannot read it: %s" % error.strerror)
    except (UnicodeError, configparser.Error) as error:
        # configparser counts our section header as a line
        raise Problem(printable(re.sub(r"line:? +(\d+)|\[line +(\d+)\]", lambda m: "line %d" % (
            int(m.group(1) or m.group(2)) - 1), str(error).replace("'<string>'", "it"))), 2)
    found = {}
    for section in parser.sections():
        for key, value in parser.items(section):
            if key in found:
                raise Problem("%s is given twice" % key, 2)
            found[key] = value.strip()
    values = {}
    for key, default, expected, read in OPTIONS:
        if key not in found and default is ...:
            raise Problem("%s is missing: expected %s" % (key, expected), 2)
        try:
            values[key.replace("-", "_")] = read(found.pop(key)) if key in found else default
        except (ValueError, OverflowError) as error:
            raise Problem("%s: expected %s: %s" % (key, expected, printable(error)), 2)
    if found:
        import difflib
        key = min(found)
        near = difflib.get_close_matches(key, [row[0] for row in OPTIONS], 1, 0.5)
        raise Problem("unknown key %s%s" % (
            printable(key), "; did you mean %s?" % near[0] if near else ""), 2)
    return check_config(Config(file=file, **values))


def check_config(config):
    """The Config if its values go together, key-type filled in. Raises Problem."""
    kind = config.key_type or ("rsa" if config.key_length else "ec-p256")
    files = [place(config, which, "key") for which in ("live", "staging")] + [config.account_key]
    for wrong, text in (
            (not config.domains, "domains: expected host names"),
            (len(config.domains) > 100, "domains: more than 100 names in one certificate"),
            (config.key_length and kind != "rsa", "key-length is for RSA keys; leave it out"),
            (len(set(files)) < 3, "live, staging and account-key must be different files"),
            (config.tlsa and not config.staging_hours, "staging-hours must be above 0 with tlsa: "
             "a new key that goes live at once fits no TLSA record that caches hold")):
        if wrong:
            raise Problem(text, 2)
    return config._replace(key_type=kind)


def place(config, which, ext):
    """The path of a file of the line: which is live or staging, ext its extension."""
    folder = config.keys if ext in ("key", "lock") else config.certs
    return os.path.join(folder, "%s.%s" % (getattr(config, which), ext))


def check_owner(path):
    """As root, trust no file that others could write, nor one in such a folder; links are
    followed step by step. Raises Problem."""
    if os.geteuid():
        return
    done = "/"
    for part in [""] + path.strip("/").split("/"):
        done = os.path.join(done, part)
        info = os.lstat(done)
        if stat.S_ISLNK(info.st_mode):
            check_owner(os.path.realpath(done))
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if info.st_uid or (info.st_mode & 0o022 and not sticky
                           and not stat.S_ISLNK(info.st_mode)):
            raise Problem("%s must belong to root and be writable for nobody else, as this runs "
                          "as root: chown root, chmod go-w" % done)


# ---- Facts --------------------------------------------------------------------------------------

Key = namedtuple("Key", "spki kind bits made")  # spki: SHA-256 (hex); made: file time (seconds)
Crt = namedtuple("Crt", "names not_before not_after spki sha256")  # spki: of its leaf, "" if bad
# state: dict; asked: what this run did once (SPKI digests requested, "stage"); force: what is
# done though it is not due; hooks: may they run; skew: seconds the CA's clock is ahead, None
# unknown
Facts = namedtuple("Facts", "live_key live_crt staging_key staging_crt state asked force hooks "
                            "skew", defaults=(frozenset(), "", True, 0))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def read_file(path):
    """The bytes of a file, None if there is none. Raises Problem."""
    try:
        with open(path, "rb") as file:
            return file.read(1000000)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Problem("cannot read %s: %s" % (path, error.strerror))


def read_key(path):
    """The Key in a PEM file, None if there is none. Raises Problem for what is no key."""
    data = read_file(path)
    if data is None:
        return None
    try:
        spki = public_key(data.decode("ascii", "replace"))
        return Key(sha256(spki), *key_kind(spki), os.stat(path).st_mtime)
    except (ValueError, IndexError, ToolError) as error:
        raise Problem("%s is no private key that can be used (%s): restore it from the backups" % (
            path, error))


def read_crt(path):
    """The Crt in a PEM file, None if there is none; one that is no certificate fits no key."""
    data = read_file(path)
    if data is None:
        return None
    try:
        leaf = next(der for label, der in pem(data.decode("ascii", "replace"))
                    if label == "CERTIFICATE")
        crt = parse_certificate(leaf)
        return Crt(tuple(crt.names), crt.not_before, crt.not_after, sha256(crt.spki), sha256(data))
    except (ValueError, StopIteration):
        return Crt((), 0, 0, "", sha256(data))


def read_state(config, now):
    """What is known of the past (dict); whatever is lost, strange or from the future is left
    out, which at worst makes hooks run once more and clocks start anew."""
    try:
        found = json.loads(read_file(place(config, "live", "state")) or b"{}")
    except (Problem, ValueError, RecursionError):
        found = {}

    def moment(value, ahead=0):
        return type(value) in (int, float) and 0 < value <= now + ahead

    def strings(value):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    checks = {
        "certchange": lambda v: isinstance(v, str),
        "keychange": lambda v: isinstance(v, list) and len(v) == 2,
        "published": moment,
        "seen": moment,
        "account": lambda v: strings([v["directory"], v["url"], v["thumbprint"]]),
        "retry": lambda v: type(v["count"]) is int and v["count"] > 0 and strings(
            [v["directory"], v["error"]]) and strings(v["names"]) and moment(
            v["after"], RETRY_AFTER_SECONDS if v["server"] is True else DAY),
        "challenges": lambda v: strings(v) and all(
            re.match(r"/.*/[A-Za-z0-9_-]+\Z", path) for path in v),
        "owed": lambda v: isinstance(v, list),
    }
    state = {}
    for name, fine in checks.items():
        try:
            if fine(found[name]):
                state[name] = found[name]
        except (KeyError, TypeError):
            pass
    return state


# ---- Decision -----------------------------------------------------------------------------------

# verb and what: see perform(); why: for people; when: since when it is due, or (wait) until when
Step = namedtuple("Step", "verb what why when", defaults=(0,))


def decide(config, facts, now):
    """The next Step from what is there. Pure; now: seconds since 1970. The order makes it safe."""
    key, crt, skey, scrt = facts[:4]
    fits = crt and crt.spki == key.spki
    pair = skey and scrt and scrt.spki == skey.spki
    # A crash or a power cut in the midst of making a staged pair live
    if skey and skey.spki == key.spki:
        return Step("drop", "key", "it is the live key already")
    if scrt and not skey:
        if scrt.spki == key.spki and not fits:
            return Step("promote", "crt", "it is the live key's")
        return Step("retire", "crt", "it has no key")
    if skey and crt and not fits and crt.spki == skey.spki:
        return Step("promote", "key", "the live certificate is for it")

    blocked = blocked_until(config, facts, now)
    for which, some_key, some_crt in (("live", key, crt), ("staging", skey, scrt)):
        why, since = request_due(config, facts, some_key, some_crt, now)
        if why and not blocked and some_key.spki not in facts.asked:
            return Step("request", which, why, since)
    good_clock = abs(facts.skew or 0) <= CLOCK_SECONDS
    ask_clock = facts.skew is None and not blocked
    why, since = key_due(config, facts, now)
    if why and not skey and good_clock and "stage" not in facts.asked:
        if ask_clock:
            return Step("clock", "", "a new key is due", since)
        return Step("stage", "", why, since)

    unstage = unstage_due(config, facts, now) if pair else None
    if unstage and unstage.verb == "unstage":
        unstage = (unstage if not ask_clock else unstage._replace(verb="clock")
                   ) if good_clock else None
    if unstage and not config.staging_hours:
        return unstage
    for hook in hooks_owed(config, facts) if fits and facts.hooks else ():
        return Step("hook", hook, "it is owed")
    return unstage if unstage and unstage.verb != "wait" else outlook(config, facts, now)


def request_due(config, facts, key, crt, now):
    """(why, since when) a certificate for the key must be requested, ("", 0) if not."""
    if key is None:
        return "", 0
    if crt is None or not crt.spki:
        return "there is none", 0
    if crt.spki != key.spki:
        return "the present one is for another key", 0
    if set(crt.names) != set(config.domains):
        return "it has other names", 0
    due = renewal_time(config, crt)
    if now >= due:
        return "the present one ends %s" % utc(crt.not_after), due
    return ("asked for", now) if facts.force == "renew" else ("", 0)


def renewal_time(config, crt):
    """When (seconds since 1970) a certificate is to be renewed: a third of its life before it
    ends, half if it lives less than 10 days; the configured days, but at most half its life."""
    life = crt.not_after - crt.not_before
    days = config.renew_cert_before_expiry_days
    ahead = days * DAY if days else life / 2 if life < 10 * DAY else life / 3
    return crt.not_after - min(ahead, life / 2)


def key_due(config, facts, now):
    """(why, since when) a new key must be staged, ("", 0) if not."""
    key, due = facts.live_key, facts.live_key.made + config.max_key_age_days * DAY
    if key.kind != config.key_type:
        return "the live key is %s, the config wants %s" % (key.kind, config.key_type), 0
    if key.bits != (config.key_length or max(key.bits, 2048)) and key.kind == "rsa":
        return "the live key has %d bits, the config wants %d" % (
            key.bits, config.key_length or 2048), 0
    if now >= due:
        return "the live key is %d days old" % ((now - key.made) / DAY), due
    return ("asked for", now) if facts.force == "new-key" else ("", 0)


def hooks_owed(config, facts):
    """The names of the hooks that have not yet exited 0 for what is on disk, in their order."""
    state, pair = facts.state, staged_pair(facts)
    owed = []
    if config.post_certchange and state.get("certchange") != facts.live_crt.sha256:
        owed.append("post-certchange")
    if config.post_keychange and (state.get("keychange") != keys_of(facts) or (
            pair and config.staging_hours and "published" not in state)):
        owed.append("post-keychange")
    return owed


def staged_pair(facts):
    """Is there a staged key with its certificate?"""
    key, crt = facts.staging_key, facts.staging_crt
    return bool(key and crt and crt.spki == key.spki)


def keys_of(facts):
    """The digests [live, staging or None] that DNS must hold; a key counts once certified."""
    return [facts.live_key.spki, facts.staging_key.spki if staged_pair(facts) else None]


def unstage_due(config, facts, now):
    """The Step that brings the staged pair nearer to being live, or the wait for it."""
    state = facts.state
    if not config.staging_hours:
        return Step("unstage", "", "there is no staging time", 0)
    if config.post_keychange and state.get("keychange") != keys_of(facts):
        return Step("wait", "", "the staged key waits for post-keychange (run with -k)", 0)
    if "published" not in state:
        return Step("wait" if config.post_keychange else "publish", "", "it is not published", 0)
    due = state["published"] + config.staging_hours * HOUR
    if config.tlsa:
        return Step("wait", "", "the staged key waits to be seen in DNS", due)
    return Step("unstage" if now >= due else "wait", "", "the staged key becomes live", due)


def blocked_until(config, facts, now):
    """Until when (seconds since 1970) no request is allowed, after a failure; None if one is."""
    retry = facts.state.get("retry")
    if not retry or retry["directory"] != config.directory_url or retry["after"] <= now:
        return None
    return retry["after"] if retry["server"] or retry["names"] == config.domains else None


def outlook(config, facts, now):
    """The wait Step when nothing can be done: what comes next, and when."""
    blocked = blocked_until(config, facts, now)
    pairs = (("live", facts.live_key, facts.live_crt),
             ("staging", facts.staging_key, facts.staging_crt))
    coming = []
    for which, key, crt in pairs:
        why, since = request_due(config, facts._replace(force=""), key, crt, now)
        if why:
            return Step("wait", "request", "a certificate '%s' is due (%s)" % (
                getattr(config, which), why), blocked or now)
        if key:
            coming.append((renewal_time(config, crt), "renewing '%s'" % getattr(config, which)))
    if facts.staging_key:
        step = unstage_due(config, facts, now)
        coming.append((step.when, step.why))
    else:
        coming.append((facts.live_key.made + config.max_key_age_days * DAY, "making a new key"))
    when, why = min(coming)
    return Step("wait", "", why, when)


# ---- Files: the only code that writes -----------------------------------------------------------


def sync_folder(path):
    """Make what was renamed in the folder of the file last. Raises OSError."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path, data, mode=0o600, like=None, temp=None, replace=True):
    """Put data (bytes) at path so that whoever reads it finds the old or the new, never half.

    mode: whatever the umask; like: stat of a file whose owner, group and mode to take;
    replace=False: a file that is there stays. Raises Problem.
    """
    temp = temp or path + ".tmp"
    try:
        try:
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                if like and (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, like.st_uid, like.st_gid)
                os.fchmod(fd, stat.S_IMODE(like.st_mode) if like else mode)
                os.fsync(fd)
            if replace:
                os.replace(temp, path)
            else:
                os.link(temp, path)
        finally:
            if os.path.lexists(temp):
                os.unlink(temp)
        sync_folder(path)
    except OSError as error:
        raise Problem("cannot write %s: %s; mend that, the next run goes on" % (
            path, error.strerror))


def back_up(config, path):
    """Keep the file in the backups, by a hard link where possible. Raises Problem."""
    name = "%s.%s" % (os.path.basename(path), time.strftime("%Y%m%d-%H%M%S", time.gmtime()))
    target, count = os.path.join(config.backups, name), 0
    while os.path.lexists(target):
        count += 1
        target = os.path.join(config.backups, "%s-%d" % (name, count))
    try:
        try:
            os.link(path, target)
        except OSError:
            with open(path, "rb") as file:
                write_file(target, file.read(), like=os.fstat(file.fileno()),
                           temp=backup_temp(config))
        else:
            sync_folder(target)
    except OSError as error:
        raise Problem("cannot back up %s to %s: %s" % (path, target, error.strerror))


def backup_temp(config):
    return os.path.join(config.backups, config.live + ".tmp")


def update_state(config, **changes):
    """Change entries of the state file; None removes one. Raises Problem."""
    old = read_state(config, time.time())
    new = {k: v for k, v in dict(old, **changes).items() if v is not None}
    if new != old:
        write_file(place(config, "live", "state"),
                   (json.dumps(new, indent=1, sort_keys=True) + "\n").encode(), 0o644)


def install(config, which, text):
    """Make text (PEM) the certificate live or staging; what was there goes to the backups."""
    path = place(config, which, "crt")
    if os.path.lexists(path):
        back_up(config, path)
    write_file(path, text.encode(), 0o644)


def rename(config, *exts):
    """Give the staged files the live names; what was there goes to the backups first."""
    for ext in exts:
        if os.path.lexists(place(config, "live", ext)):
            back_up(config, place(config, "live", ext))
    # A signal between the two would leave a key without its certificate until the next run
    old = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        for ext in exts:
            os.replace(place(config, "staging", ext), place(config, "live", ext))
        for ext in exts:
            sync_folder(place(config, "live", ext))
    except OSError as error:
        raise Problem("cannot rename %s: %s" % (place(config, "staging", ext), error.strerror))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def drop(config, ext, keep):
    """Remove a staged file; keep: have it in the backups."""
    path = place(config, "staging", ext)
    if keep:
        back_up(config, path)
    try:
        os.unlink(path)
        sync_folder(path)
    except OSError as error:
        raise Problem("cannot remove %s: %s" % (path, error.strerror))


def make_folder(path, mode):
    """Make a folder and those above it. Raises Problem."""
    if os.path.isdir(path):
        return
    make_folder(os.path.dirname(path), 0o755)
    say("Making folder %s" % path)
    umask = os.umask(0)
    try:
        os.mkdir(path, mode)
        sync_folder(path)
    except OSError as error:
        raise Problem("cannot make folder %s: %s" % (path, error.strerror))
    finally:
        os.umask(umask)


def make_key(path, kind, bits=None, like=None, replace=True):
    """Write a new private key (PKCS#8 PEM), 0600 from the first byte. Raises Problem."""
    option = "rsa_keygen_bits:%d" % (bits or 3072) if kind == "rsa" else (
        "ec_paramgen_curve:P-" + kind[4:])
    try:
        text = openssl("genpkey", "-algorithm", "RSA" if kind == "rsa" else "EC", "-pkeyopt",
                       option)
        public_key(text.decode("ascii", "replace"))
    except (ToolError, ValueError) as error:
        raise Problem("cannot make a key: %s" % error)
    write_file(path, text, like=like, replace=replace)


def lock(config):
    """The open lock of this line, for as long as it is kept. Raises Problem (status 75)."""
    path = place(config, "live", "lock")
    try:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        raise Problem("another run holds %s" % path, 75)
    except OSError as error:
        raise Problem("cannot lock %s: %s; has init been run?" % (path, error.strerror))


def account_folder_lock(config):
    """A locked file descriptor of the account key's folder: several lines may share that key."""
    try:
        fd = os.open(os.path.dirname(config.account_key), os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd
    except OSError as error:
        raise Problem("cannot use the folder of %s: %s" % (config.account_key, error.strerror))


def make_account_key(config):
    """Make the account key unless it is there. Raises Problem."""
    fd = account_folder_lock(config)
    try:
        if not os.path.lexists(config.account_key):
            say("Making account key %s" % config.account_key)
            make_key(config.account_key, "ec-p256", replace=False)
    finally:
        os.close(fd)


def clean_up(config):
    """Remove what a killed run left behind: temporary and challenge files; tighten keys."""
    challenges = read_state(config, time.time()).get("challenges", [])
    keys = [place(config, "live", "key"), place(config, "staging", "key"), config.account_key]
    temps = [path + ".tmp" for path in keys[:2] + [place(config, *file) for file in (
        ("live", "crt"), ("staging", "crt"), ("live", "state"))]] + [backup_temp(config)]
    for path in temps + challenges + [config.account_key + ".tmp"]:
        if os.path.lexists(path):
            fd = account_folder_lock(config) if path == config.account_key + ".tmp" else None
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                complain(config.file, "cannot remove %s: %s" % (path, error.strerror))
            finally:
                if fd is not None:
                    os.close(fd)
    if challenges:
        update_state(config, challenges=None)
    for path in keys:
        if os.path.exists(path) and os.stat(path).st_mode & 0o007:
            say("Making %s readable for its owner only" % path)
            os.chmod(path, 0o600)


# ---- Actions ------------------------------------------------------------------------------------

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


class Run:
    """What this run did so far, as far as it is not on disk: asked, force, skew: as in Facts;
    client: one for all requests; status: the exit status."""

    def __init__(self, config, hooks=False, force=""):
        self.config, self.hooks, self.force = config, hooks, force
        self.asked, self.client, self.skew, self.failed, self.status = set(), None, None, False, 0

    def facts(self):
        """The Facts as they are now. Raises Problem."""
        config = self.config
        key = read_key(place(config, "live", "key"))
        if key is None:
            raise Problem("%s is missing: restore it from %s, or run init" % (
                place(config, "live", "key"), config.backups))
        return Facts(key, read_crt(place(config, "live", "crt")),
                     read_key(place(config, "staging", "key")),
                     read_crt(place(config, "staging", "crt")),
                     read_state(config, time.time()), frozenset(self.asked), self.force,
                     self.hooks, self.skew)


def reconcile(run):
    """Do what is due, one Step after the other, until there is none. Returns the exit status."""
    for _ in range(50):
        facts, now = run.facts(), time.time()
        step = decide(run.config, facts, now)
        if step.verb == "wait":
            return conclude(run, facts, step, now)
        perform(run, facts, step)
    raise Problem("it does not settle: %s again and again" % describe(run.config, step))


def describe(config, step):
    """What a Step does (str), in words that fit before and after."""
    live, staging = config.live, config.staging
    return {
        "drop": "Removing '%s.%s'" % (staging, step.what),
        "retire": "Moving '%s.%s' to the backups" % (staging, step.what),
        "promote": "Making '%s.%s' live" % (staging, step.what),
        "request": "Obtaining certificate '%s' for %s" % (
            getattr(config, step.what or "live", live), ", ".join(config.domains)),
        "clock": "Comparing the clock with the CA's",
        "stage": "Making a new private key '%s' (%s)" % (staging, config.key_type),
        "publish": "Starting the staging time of '%s'" % staging,
        "hook": "Running %s" % step.what,
        "unstage": "Making '%s' live: it becomes '%s'" % (staging, live),
        "wait": "Nothing",
    }[step.verb]


def perform(run, facts, step):
    """Do one Step. Raises Problem, which ends the run."""
    config = run.config
    if step.verb == "clock":
        return ask_clock(run)
    say(describe(config, step) + (": " + step.why if step.verb in ("stage", "drop", "retire")
                                  else ""))
    if step.verb == "request":
        request(run, facts, step.what)
    elif step.verb == "stage":
        run.asked.add("stage")
        run.force = ""
        update_state(config, published=None, seen=None)
        make_key(place(config, "staging", "key"), config.key_type, config.key_length,
                 os.stat(place(config, "live", "key")))
    elif step.verb == "publish":
        update_state(config, published=time.time())
    elif step.verb == "hook":
        run_hook(config, facts, step.what)
    elif step.verb in ("drop", "retire"):
        drop(config, step.what, step.verb == "retire")
    else:
        rename(config, *("key", "crt") if step.verb == "unstage" else (step.what,))


def client_of(run):
    """The Client of this run. Raises OSError for a CA bundle that cannot be read."""
    config = run.config
    if run.client is None:
        run.client = Client(config.directory_url, contact=config.contact, proxy=config.proxy,
                            ca_bundle=config.ca_bundle)
    return run.client


def account_of(run, account):
    """The Client of this run with its account, from the state's entry if it is the same."""
    config, client = run.config, client_of(run)
    if client.key is None:
        make_account_key(config)
        client.key = AccountKey(config.account_key)
        if account and account == account_entry(config, client, account["url"]):
            client.account = account["url"]
    return client


def account_entry(config, client, url):
    """The state's entry for an account: what it depends on, and its URL."""
    return {"directory": config.directory_url, "thumbprint": client.key.thumbprint,
            "contact": config.contact, "url": url}


def request(run, facts, which):
    """Request a certificate for the key live or staging; a failure is told and remembered."""
    config, old = run.config, facts.state.get("retry")
    path = place(config, which, "key")
    run.asked.add((facts.live_key if which == "live" else facts.staging_key).spki)
    # Before the order, so that a program that dies at it does not order for ever
    count = old["count"] + 1 if old and old["names"] == config.domains else 1
    retry = {"count": count, "names": config.domains, "directory": config.directory_url,
             "server": False, "error": "the run was cut off",
             "after": time.time() + RETRY_SECONDS[min(count - 1, 4)]}
    update_state(config, retry=retry)
    solver = HttpFiles(config.challenge_dir, self_check(run), None,
                       lambda paths: update_state(config, challenges=paths),
                       lambda text: complain(config.file, text))
    try:
        client = account_of(run, facts.state.get("account"))
        key = public_key(read_file(path).decode("ascii", "replace"))
        text = client.obtain(config.domains, make_csr(path, key, config.domains), key, solver)
        check_newer(facts.live_crt if which == "live" else facts.staging_crt, text, config)
        install(config, which, text)
        retry = None
    except (AcmeError, OSError) as error:
        fail(run, retry, error)
        complain(config.file, "no certificate '%s': %s; what is there stays, cron tries again "
                 "from %s" % (getattr(config, which), error, utc(retry["after"])))
    except Stopped:
        retry = old
        raise
    finally:
        client = run.client
        update_state(config, retry=retry, challenges=solver.paths or None, account=account_entry(
            config, client, client.account) if client and client.account else None)
        compare_clocks(run)


def fail(run, retry, error):
    """Note in retry (dict) when the next request may be made, after this error."""
    run.failed, run.status, now = True, 1, time.time()
    wait = getattr(error, "retry_after", None)
    retry.update(server=wait is not None, error=str(error)[:500], after=now + (
        min(wait, RETRY_AFTER_SECONDS) if wait is not None
        # What broke on this machine (a full disk) did not bother the CA: one try more
        else RETRY_SECONDS[min(retry["count"] - (not isinstance(error, AcmeError)), 4)]))


def self_check(run):
    """What to do with a challenge file that cannot be fetched, as configured; None: not look."""
    def refuse(text):
        raise AcmeError(text)
    return {"no": None, "require": refuse,
            "warn": lambda text: complain(run.config.file, text)}[run.config.self_check]


def check_newer(old, text, config):
    """Raise AcmeError if text (PEM) is no progress over the old Crt for the same key and names."""
    leaf = parse_certificate(pem(text)[0][1])
    if old and (old.spki, set(old.names)) == (sha256(leaf.spki), set(leaf.names)) and (
            (leaf.not_after, leaf.not_before) <= (old.not_after, old.not_before)
            if leaf.not_after != old.not_after else False):
        raise AcmeError("the CA's new certificate ends before the present one (%s)" % utc(
            leaf.not_after))


def make_csr(path, spki, names):
    """A PKCS#10 request (DER bytes, RFC 2986) for names (list of str), signed by the key at path
    (str), whose public half is spki (DER bytes). Raises ToolError."""
    san = tlv(0x30, *[tlv(0x82, name.encode()) for name in names])
    extensions = tlv(0x30, tlv(0x30, tlv(6, bytes.fromhex("551d11")), tlv(4, san)))
    attribute = tlv(0x30, tlv(6, bytes.fromhex("2a864886f70d01090e")), tlv(0x31, extensions))
    info = tlv(0x30, tlv(2, b"\0"), tlv(0x30), spki, tlv(0xa0, attribute))
    algorithm = (tlv(0x30, tlv(6, bytes.fromhex("2a864886f70d01010b")), tlv(5))
                 if key_kind(spki)[0] == "rsa"
                 else tlv(0x30, tlv(6, bytes.fromhex("2a8648ce3d040302"))))
    return tlv(0x30, info, algorithm, tlv(3, b"\0", openssl("dgst", "-sha256", "-sign", path,
                                                             stdin=info)))


def ask_clock(run):
    """Ask the CA what time it is; one that cannot be reached is taken to agree with us."""
    try:
        client_of(run).directory()
    except (AcmeError, OSError) as error:
        if getattr(error, "retry_after", None) is not None:
            retry = {"count": 1, "names": run.config.domains, "error": "",
                     "directory": run.config.directory_url}
            fail(run, retry, error)
            update_state(run.config, retry=retry)
    compare_clocks(run)
    run.skew = run.skew or 0


def compare_clocks(run):
    """Take the CA's time from its last answer, and tell if the clocks are far apart."""
    skew = run.client.skew if run.client else None
    if skew is not None and abs(skew) > CLOCK_SECONDS and run.skew is None:
        complain(run.config.file, "your clock is %.1f days %s (the CA says %s): no key is made or "
                 "made live until that is mended" % (
                     abs(skew) / DAY, "behind" if skew > 0 else "ahead", utc(time.time() + skew)))
    run.skew = run.skew if skew is None else skew


def check_hook(path):
    """Raise Problem if a hook cannot be run."""
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise Problem("the hook %s is no program that can be run: chmod +x" % path)
    check_owner(path)


def run_hook(config, facts, name):
    """Run a hook and note that it is done, if it exited 0. Raises Problem otherwise."""
    import resource, subprocess
    program = getattr(config, name.replace("-", "_"))
    env = {k: v for k, v in os.environ.items() if k not in ("STAGING_CRT", "STAGING_KEY")}
    env.update(HOOK=name, CONFIG=config.file, DOMAINS=" ".join(config.domains))
    for which in ("live", "staging") if staged_pair(facts) else ("live",):
        for ext in ("crt", "key"):
            env["%s_%s" % (which.upper(), ext.upper())] = place(config, which, ext)
    cores = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (cores[1], cores[1]))
        hook = subprocess.Popen([program], stdin=subprocess.DEVNULL, env=env,
                                start_new_session=True,
                                stdout=subprocess.DEVNULL if 1 in deaf else None,
                                stderr=subprocess.DEVNULL if 2 in deaf else None)
    except OSError as error:
        raise Problem("cannot run %s (%s): %s" % (name, program, error.strerror))
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, cores)
    try:
        status = hook.wait(config.hook_timeout)
    except subprocess.TimeoutExpired:
        status = "it ran for %g seconds and was killed" % config.hook_timeout
    finally:
        if hook.returncode is None:
            os.killpg(hook.pid, signal.SIGKILL)
            hook.wait()
    if status:
        raise Problem("%s (%s) failed: %s; it runs again next time" % (
            name, program, status if isinstance(status, str) else "exit status %d" % status))
    if name == "post-certchange":
        update_state(config, certchange=facts.live_crt.sha256)
    else:
        update_state(config, keychange=keys_of(facts),
                     published=time.time() if staged_pair(facts) else None)


def conclude(run, facts, step, now):
    """Tell what could not be done, and return the exit status."""
    config = run.config
    if step.what == "request" and not run.failed:
        run.status = 1
        retry = facts.state.get("retry") if step.when > now else None
        complain(config.file, "%s; %s" % (step.why, "the last request failed (%s), the next is "
                                          "made from %s" % (retry["error"], utc(step.when))
                                          if retry else "the new one is due at once: is the clock "
                                          "right, is the CA?"))
    if abs(run.skew or 0) > CLOCK_SECONDS and decide(
            config, facts._replace(skew=0), now).verb != "wait":
        run.status = 1
    if run.force == "new-key" and facts.staging_key:
        say("A key is staged already: %s" % step.why)
    if not run.hooks and facts.live_crt and facts.live_crt.spki == facts.live_key.spki:
        owed = hooks_owed(config, facts)
        change = [facts.live_crt.sha256 if "post-certchange" in owed else None,
                  keys_of(facts) if "post-keychange" in owed else None]
        if owed and facts.state.get("owed") != change:
            say("Owed: %s (run with -k)" % ", ".join(owed))
        update_state(config, owed=change if owed else None)
    return run.status


# ---- Commands -----------------------------------------------------------------------------------

USAGE = """usage: letsencrypt-tiny -c CONFIG [-k] [-n] init | renew [--new-key] | cron | status

  init     make folders, account key, live key and certificate; once, by hand
  renew    obtain new certificates now, with --new-key stage a new private key
  cron     do whatever is due, silent when nothing is; daily
  status   tell what is there, and what comes next

  -c, --config CONFIG   the line's config file; may be repeated
  -k, --hooks           run the hooks
  -n, --dry-run         tell what cron or renew would do first
  --version             the version, and the SHA-256 of this file

exit status: 0 done or nothing to do, 1 something due could not be done, 2 wrong usage or config,
75 another run holds the lock, 128+n ended by signal n"""


def check_machine(config, hooks, folders):
    """Raise Problem unless openssl, the folders and (if they may run) the hooks can be used."""
    if not any(os.access(os.path.join(folder, "openssl"), os.X_OK)
               for folder in os.environ["PATH"].split(":")):
        raise Problem("openssl is not in PATH (%s)" % os.environ["PATH"])
    for hook in (config.post_certchange, config.post_keychange) if hooks else ():
        if hook:
            check_hook(hook)
    if config.ca_bundle and not os.access(config.ca_bundle, os.R_OK):
        raise Problem("cannot read ca-bundle %s" % config.ca_bundle)
    for folder in folders:
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            raise Problem("%s is no folder that can be written to%s" % (
                folder, "" if os.path.isdir(folder) else ": run init"))


def act(config, command, hooks, force):
    """init, renew and cron. Returns the exit status. Raises Problem."""
    folders = {config.certs: 0o755, config.keys: 0o710, config.backups: 0o700,
               config.challenge_dir: 0o755, os.path.dirname(config.account_key): 0o700}
    check_machine(config, hooks, () if command == "init" else folders)
    if command == "init":
        for folder, mode in folders.items():
            make_folder(folder, mode)
        check_machine(config, hooks, folders)
    with lock(config):
        clean_up(config)
        live = place(config, "live", "key")
        if command == "init" and not os.path.lexists(live):
            make_account_key(config)
            say("Making private key '%s' (%s)" % (config.live, config.key_type))
            make_key(live, config.key_type, config.key_length)
        retry = read_state(config, time.time()).get("retry")
        if command != "cron" and retry and not retry["server"]:
            update_state(config, retry=dict(retry, after=1))
        return reconcile(Run(config, hooks, force))


def show(config, command, hooks, force):
    """What cron or renew would do first, and why. Returns the exit status. Raises Problem."""
    run = Run(config, hooks, force)
    run.skew, now = 0, time.time()
    step = decide(config, run.facts(), now)
    say("%s: %s" % (describe(config, step), step.why if step.verb != "wait" else
                    "next is %s, %s" % (step.why, utc(step.when))))
    return 0


def status(config):
    """Tell what is there and what comes next. Returns 1 if something is overdue or failed."""
    run, now = Run(config, True), time.time()
    run.skew = 0
    facts = run.facts()
    step = decide(config, facts, now)
    say("%s: %s" % (config.file, " ".join(config.domains)))
    for which, key, crt in (("live", facts.live_key, facts.live_crt),
                            ("staging", facts.staging_key, facts.staging_crt)):
        if key:
            say("  %s key: %s, %d bits, made %s (%d days ago), SHA-256 of its public half %s" % (
                getattr(config, which), key.kind, key.bits, utc(key.made), (now - key.made) / DAY,
                key.spki))
            fits = crt and crt.spki == key.spki
            say("  %s certificate: %s" % (getattr(config, which), "until %s (%d days), for %s" % (
                utc(crt.not_after), (crt.not_after - now) // DAY, " ".join(crt.names)) if fits
                else "for another key" if crt else "none"))
    if facts.staging_key and "published" in facts.state:
        say("  published: since %s" % utc(facts.state["published"]))
    owed = hooks_owed(config, facts) if facts.live_crt else []
    retry = facts.state.get("retry")
    if owed:
        say("  hooks owed: %s" % ", ".join(owed))
    if retry:
        say("  last failure: %s; next request from %s" % (retry["error"], utc(retry["after"])))
    say("  next: %s" % ("%s, %s" % (step.why, utc(step.when)) if step.verb == "wait" else
                        "%s: %s" % (describe(config, step), step.why)))
    grace = min(1.5 * DAY, (facts.live_crt.not_after - facts.live_crt.not_before) / 10
                ) if facts.live_crt else 0
    overdue = step.what == "request" if step.verb == "wait" else now - step.when > grace
    return 1 if retry or owed or overdue else 0


def run_line(file, command, hooks, dry, force):
    """Do the command for the line of a config file. Returns the exit status."""
    try:
        config = read_config(os.path.abspath(file))
        check_owner(config.file)
        if dry:
            return show(config, command, hooks, force)
        if command == "status":
            return status(config)
        return act(config, command, hooks, force)
    except Problem as problem:
        complain(file, str(problem))
        return problem.status
    except OSError as error:
        complain(file, "%s: %s" % (error.filename or "the system", error.strerror or error))
        return 1


def stop(number, _):
    """Signal handler: end in order, and only once."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


def prepare():
    """Make the surroundings that cron, ssh and broken shells leave us in safe to work in."""
    import resource
    while True:  # no file of ours may become descriptor 0, 1 or 2
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            break
    os.environ.setdefault("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def main(argv=None):
    """The command line. argv: list of str. Returns the exit status (int)."""
    prepare()
    try:
        options, commands = getopt.gnu_getopt(sys.argv[1:] if argv is None else argv, "c:knh", [
            "config=", "hooks", "dry-run", "new-key", "version", "help"])
    except getopt.GetoptError as error:
        emit(2, "letsencrypt-tiny: %s; see --help" % error)
        return 2
    given = {name for name, _ in options}
    files = [value for name, value in options if name in ("-c", "--config")]
    if given & {"-h", "--help"}:
        say(USAGE)
        return 0
    if "--version" in given:
        with open(__file__, "rb") as file:
            say("letsencrypt-tiny %s, SHA-256 %s" % (__version__, sha256(file.read())))
        return 0
    command, dry = commands[0] if len(commands) == 1 else "", bool(given & {"-n", "--dry-run"})
    if command not in ("init", "renew", "cron", "status") or not files or (
            "--new-key" in given and command != "renew") or (
            dry and command not in ("cron", "renew")):
        emit(2, USAGE)
        return 2
    force = "" if command != "renew" else "new-key" if "--new-key" in given else "renew"
    worst = 0
    try:
        for file in files:
            worst = max(worst, run_line(file, command, bool(given & {"-k", "--hooks"}), dry,
                                        force))
    except Stopped as stopped:
        complain(file, "ended by %s; the next run goes on" % signal.Signals(stopped.args[0]).name)
        return 128 + stopped.args[0]
    return worst


if __name__ == "__main__":
    sys.exit(main())
