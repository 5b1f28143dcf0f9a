"""A small DNS server for tests: a resolver, or a zone's own server, that fails on demand.

It answers by UDP and TCP on 127.0.0.1 (and ::1 where there is one) at one free port, with name
compression, follows aliases, and sets the flags that it is told to.

    with FakeDNS('_25._tcp.mx.example.org 60 TLSA 3 1 1 0123...', ad=True) as dns:
        dns.fault('servfail', kind='TLSA')
        run_a_client(dns.address)                   # '127.0.0.1@40053'
        dns.count('_25._tcp.mx.example.org', 'TLSA')
"""
import contextlib
import selectors
import socket
import struct
import threading
import time
from types import SimpleNamespace

TYPES = {'A': 1, 'NS': 2, 'CNAME': 5, 'SOA': 6, 'TXT': 16, 'AAAA': 28, 'OPT': 41, 'TLSA': 52}
NAMES = {number: name for name, number in TYPES.items()}
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
QR, AA, TC, RD, RA, AD = 0x8000, 0x400, 0x200, 0x100, 0x80, 0x20
CODES = {'servfail': SERVFAIL, 'nxdomain': NXDOMAIN, 'refused': REFUSED}

# What a fault does: another code instead of an answer (see CODES); no answer ('silent'), a late
# one ('slow'); an answer only by TCP ('truncated'), there taking for ever ('dribble') or broken off
# in the middle ('hang-up'); no AD, no AA, no SOA in the authority section; or a message that is
# none: bytes at random ('garbage'), half of one ('cut'), a name that points at itself ('loop'), for
# another query ('wrong-id', 'wrong-question'), the query itself ('echo').
FAULTS = {*CODES, 'silent', 'slow', 'truncated', 'dribble', 'hang-up', 'no-ad', 'no-aa', 'no-soa',
          'garbage', 'cut', 'loop', 'wrong-id', 'wrong-question', 'echo'}
BY_TCP = {'truncated', 'dribble', 'hang-up'}


def plain(name):
    """A name as it is compared: lower case, no dot at its end."""
    return name.rstrip('.').lower()


def read_zone(text):
    """[(owner, type, TTL, [words])] of lines such as `mx.example.org. 60 IN A 192.0.2.1`."""
    records = []
    for line in text.splitlines():
        owner, ttl, *words = line.split() or ('', '')
        if words:
            words = words[words[0] == 'IN':]
            records.append((plain(owner), words[0], int(ttl), words[1:]))
    return records


class Writer:
    """A DNS message in the making, with its names compressed (RFC 1035 section 4.1.4)."""

    def __init__(self, ident, flags, question=b''):
        """ident, flags: int; question: (name, type number), or nothing."""
        self.data, self.known = bytearray(struct.pack('!6H', ident, flags, 0, 0, 0, 0)), {}
        if question:
            self.name(question[0])
            self.data += struct.pack('!2H', question[1], 1)
            self.data[5] = 1

    def name(self, text):
        labels = [label for label in text.split('.') if label]
        for count in range(len(labels)):
            rest = '.'.join(labels[count:]).lower()
            if rest in self.known:
                self.data += struct.pack('!H', 0xc000 | self.known[rest])
                return
            if len(self.data) < 0x4000:
                self.known[rest] = len(self.data)
            self.data += bytes([len(labels[count])]) + labels[count].encode()
        self.data.append(0)

    def record(self, section, owner, kind, ttl, words):
        """Add a record to a section: 1 answer, 2 authority, 3 additional. words: its data as in a
        zone file (list of str), or bytes."""
        self.name(owner)
        number = TYPES[kind] if kind in TYPES else int(kind)
        self.data += struct.pack('!2HIH', number, 1, ttl & 0xffffffff, 0)
        start = len(self.data)
        if isinstance(words, bytes):
            self.data += words
        elif kind in ('A', 'AAAA'):
            self.data += socket.inet_pton(
                socket.AF_INET if kind == 'A' else socket.AF_INET6, words[0])
        elif kind in ('NS', 'CNAME'):
            self.name(words[0])
        elif kind == 'TLSA':
            self.data += bytes(map(int, words[:3])) + bytes.fromhex(''.join(words[3:]))
        elif kind == 'SOA':
            self.name(words[0])
            self.name(words[1])
            self.data += struct.pack('!5I', *map(int, words[2:]))
        else:
            self.data += b''.join(bytes([len(word)]) + word.encode() for word in words)
        struct.pack_into('!H', self.data, start - 2, len(self.data) - start)
        count = 4 + 2 * section
        struct.pack_into('!H', self.data, count, 1 + struct.unpack_from('!H', self.data, count)[0])

    def done(self):
        return bytes(self.data)


def read_query(message):
    """What is asked: ident, flags, name, number and kind of the type, edns: the size of a UDP
    answer that the sender takes, None without EDNS. Raises ValueError for what is no query."""
    try:
        ident, flags, *counts = struct.unpack_from('!6H', message)
        labels, at = [], 12
        while message[at]:
            if message[at] > 63:
                raise ValueError('a pointer, or no name')
            labels.append(message[at + 1:at + 1 + message[at]].decode())
            at += 1 + message[at]
        number, group = struct.unpack_from('!2H', message, at + 1)
        at, edns = at + 5, None
        if counts[3]:
            root, kind, edns = struct.unpack_from('!BHH', message, at)
            size, = struct.unpack_from('!H', message, at + 9)
            if root or kind != TYPES['OPT'] or len(message) != at + 11 + size:
                raise ValueError('no OPT record')
        elif len(message) != at:
            raise ValueError('more than a query')
    except (IndexError, struct.error) as error:
        raise ValueError(str(error))
    if flags & QR or group != 1 or counts[0] != 1 or counts[1] or counts[2] or counts[3] > 1:
        raise ValueError('not one question')
    return SimpleNamespace(ident=ident, flags=flags, name='.'.join(labels), number=number,
                           kind=NAMES.get(number, str(number)), edns=edns)


class FakeDNS:
    """A DNS server, running between `with` and its end (or start() and stop(), also in turns: its
    port stays the same).

    records       lines of a zone file (str: NAME TTL [IN] TYPE DATA), or a function that returns
                  them and is asked at each query; may be changed at any time, as may:
    ad, aa        whether its answers are authentic (if the query wants to know), authoritative
    ttl           TTL of all records, whatever the zone says; None: as there
    without_tcp   whether connections are closed at once

    To look at:
    address, address6   127.0.0.1@port, and ::1@port or None
    port                int
    queries             all queries: name, kind, way ('udp' or 'tcp'), port (the sender's), ident,
                        flags, edns, time (when it came), sent (when it was answered, or None)
    broken              messages (bytes) that were no queries
    """

    def __init__(self, records='', ad=True, aa=False, ttl=None):
        self.records, self.ad, self.aa, self.ttl = records, ad, aa, ttl
        self.without_tcp = False
        self.queries, self.broken, self.faults, self.port = [], [], [], 0
        self.stopped, self.threads, self.sockets = threading.Event(), [], set()

    # -- for tests

    def fault(self, what, name=None, kind=None, times=None, seconds=1.0):
        """From now answer in the way `what` (see FAULTS) to queries for this name and this type
        (None: any), `times` times (None: for ever). seconds: of a slow answer, or between two
        bytes of a dribbling one."""
        if what not in FAULTS:
            raise ValueError('no such fault: %s' % what)
        self.faults.append(SimpleNamespace(what=what, name=name and plain(name), kind=kind,
                                           times=times, seconds=seconds))

    def clear(self):
        """Forget all faults, and the queries so far."""
        del self.faults[:], self.queries[:], self.broken[:]

    def count(self, name=None, kind=None, way=None):
        """How often a name and type (None: any) was asked for, by this way."""
        return sum(name in (None, plain(query.name)) and kind in (None, query.kind)
                   and way in (None, query.way) for query in self.queries)

    # -- running

    def start(self):
        self.stopped.clear()
        self.selector = selectors.DefaultSelector()
        self.waker, wakes = socket.socketpair()
        self.selector.register(wakes, selectors.EVENT_READ, None)
        self.listen()
        thread = threading.Thread(target=self.loop, daemon=True)
        thread.start()
        self.threads = [thread]
        return self

    def listen(self):
        """Open UDP and TCP sockets on one port, of both families where possible."""
        for _ in range(50):
            with contextlib.ExitStack() as stack:
                try:
                    tcp = self.bind(socket.AF_INET, socket.SOCK_STREAM, self.port, stack)
                    port = tcp.getsockname()[1]
                    found = [tcp, self.bind(socket.AF_INET, socket.SOCK_DGRAM, port, stack)]
                    if has_ipv6():
                        found += [self.bind(socket.AF_INET6, socket.SOCK_DGRAM, port, stack),
                                  self.bind(socket.AF_INET6, socket.SOCK_STREAM, port, stack)]
                except OSError:     # the port is taken in another way: the next one
                    continue
                self.port, self.address = port, '127.0.0.1@%d' % port
                self.address6 = '::1@%d' % port if found[2:] else None
                stack.pop_all()
                for sock in found:
                    stream = sock.type == socket.SOCK_STREAM
                    self.selector.register(sock, selectors.EVENT_READ,
                                           self.accept if stream else self.receive)
                return
        raise OSError('no free port for UDP and TCP')

    def bind(self, family, way, port, stack):
        """A socket that gets what is sent to this port."""
        sock = stack.enter_context(socket.socket(family, way))
        if way == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(('::1' if family == socket.AF_INET6 else '127.0.0.1', port))
        if way == socket.SOCK_STREAM:
            sock.listen()
        return sock

    def stop(self):
        self.stopped.set()
        self.waker.close()
        for sock in list(self.sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()

    def loop(self):
        while not self.stopped.is_set():
            for key, _ in self.selector.select():
                if key.data:
                    key.data(key.fileobj)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()

    def receive(self, sock):
        """A query by UDP."""
        with contextlib.suppress(ConnectionError):
            message, sender = sock.recvfrom(4096)
            answer, _ = self.respond(message, 'udp', sender[1])
            if answer:
                sock.sendto(answer, sender)

    def accept(self, sock):
        """A connection by TCP, in a thread of its own."""
        with contextlib.suppress(ConnectionError):
            connection, sender = sock.accept()
            if self.without_tcp:
                connection.close()
                return
            thread = threading.Thread(target=self.converse, args=(connection, sender[1]),
                                      daemon=True)
            thread.start()
            self.threads.append(thread)

    def converse(self, connection, port):
        self.sockets.add(connection)
        with contextlib.suppress(OSError), connection, connection.makefile('rb') as stream:
            connection.settimeout(120)
            while not self.stopped.is_set():
                size = stream.read(2)
                message = stream.read(int.from_bytes(size, 'big'))
                if not message:
                    break
                answer, faults = self.respond(message, 'tcp', port)
                data = len(answer).to_bytes(2, 'big') + answer if answer else b''
                if 'hang-up' in faults:
                    connection.sendall(data[:len(data) // 2])
                    break
                step, pause = len(data), 0
                if 'dribble' in faults:
                    step, pause = 1, faults['dribble'].seconds
                while data and not self.stopped.wait(pause):
                    connection.sendall(data[:step])
                    data = data[step:]
        self.sockets.discard(connection)

    # -- answers

    def respond(self, message, way, port):
        """(answer, faults) to a message: bytes, b'' for none; {what: fault} that struck it."""
        try:
            query = read_query(message)
        except ValueError:
            self.broken.append(message)
            return b'', {}
        query.way, query.port, query.time, query.sent = way, port, time.time(), None
        self.queries.append(query)
        faults = {fault.what: fault for fault in self.due_faults(query)}
        if 'slow' in faults:
            self.stopped.wait(faults['slow'].seconds)
        answer = self.answer(query, message, way, faults)
        query.sent = time.time() if answer else None
        return answer, faults

    def due_faults(self, query):
        """The faults that concern a query, counted."""
        due = []
        for fault in list(self.faults):
            if fault.name in (None, plain(query.name)) and fault.kind in (None, query.kind):
                due.append(fault)
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self.faults.remove(fault)
        return due

    def answer(self, query, message, way, faults):
        """The answer (bytes), harmed by faults (dict); b'' for none."""
        if 'silent' in faults:
            return b''
        if 'echo' in faults:
            return message
        if 'garbage' in faults:
            return bytes((7 * count * count + 13) & 255 for count in range(60))
        ident, name = query.ident, query.name
        if 'wrong-id' in faults:
            ident ^= 0xffff
        if 'wrong-question' in faults:
            name = 'other.' + name
        records = read_zone(self.records() if callable(self.records) else self.records)
        code, found, authority = self.look_up(records, plain(name), query.kind)
        for what in CODES:
            if what in faults:
                code, found, authority = CODES[what], [], []
        if code == NXDOMAIN and not authority and not found:
            authority = self.soa(records, plain(name))
        good = code in (NOERROR, NXDOMAIN)
        flags = QR | query.flags & RD | code | (0 if self.aa else RA)
        if self.ad and good and query.flags & AD and 'no-ad' not in faults:
            flags |= AD
        if self.aa and good and 'no-aa' not in faults:
            flags |= AA
        whole = self.write(query, ident, flags, name, found,
                           [] if 'no-soa' in faults else authority)
        if 'loop' in faults:
            writer = Writer(ident, flags, (name, query.number))
            writer.data[7] = 1
            at = len(writer.data)
            return writer.done() + struct.pack('!H2HIH', 0xc000 | at, query.number, 1, 60, 0)
        room = max(512, query.edns or 512)
        if way == 'udp' and (BY_TCP & set(faults) or len(whole) > room):
            return self.write(query, ident, flags | TC, name, [], [])
        return whole[:len(whole) - 15] if 'cut' in faults else whole

    def write(self, query, ident, flags, name, found, authority):
        writer = Writer(ident, flags, (name, query.number))
        for section, records in (1, found), (2, authority):
            for owner, kind, ttl, words in records:
                writer.record(section, owner, kind, ttl if self.ttl is None else self.ttl, words)
        if query.edns is not None:
            writer.data += struct.pack('!BHHIH', 0, TYPES['OPT'], 1232, 0, 0)
            writer.data[11] += 1
        return writer.done()

    def look_up(self, records, name, kind):
        """(code, answer records, authority records) for a name and type, aliases followed."""
        found, seen = [], set()
        while name not in seen:
            seen.add(name)
            here = [record for record in records if record[0] == name]
            fits = [record for record in here if record[1] == kind]
            if fits:
                return NOERROR, found + fits, []
            alias = [record for record in here if record[1] == 'CNAME']
            if not alias:
                exists = any(('.' + record[0]).endswith('.' + name) for record in records)
                return NOERROR if exists else NXDOMAIN, found, self.soa(records, name)
            found += alias[:1]
            name = plain(alias[0][3][0])
        return NOERROR, found, []       # round in a circle

    def soa(self, records, name):
        """[the SOA record of the zone that holds a name], [] if there is none."""
        near = [record for record in records
                if record[1] == 'SOA' and ('.' + name).endswith('.' + record[0])]
        return [max(near, key=lambda record: len(record[0]))] if near else []


def has_ipv6():
    """Can this machine talk to itself by IPv6?"""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(('::1', 0))
        return True
    except OSError:
        return False
