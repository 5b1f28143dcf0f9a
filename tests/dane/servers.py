"""The laboratory's DNS: signing primaries, secondaries and validating caches, all of them real and
all on loopback addresses of a network namespace of their own, so that port 53 is free."""
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rdatatype

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXAMPLES = os.path.join(ROOT, 'examples')
TTL = 2
KNOT, NAMED, NSD, POWERDNS = '127.0.0.2', '127.0.0.3', '127.0.0.4', '127.0.0.5'
# kind of a zone -> its servers, the primary first, and the key hook in examples/key-hooks
KINDS = {'knot': ((KNOT, NAMED), 'knot'), 'bind': ((NAMED, KNOT), 'bind-nsupdate'),
         'include': ((NAMED, KNOT), 'bind-include'), 'nsd': ((NSD,), 'nsd-ldns'),
         'powerdns': ((POWERDNS,), 'powerdns')}
# The caches: two for the probes, one for the program, and one for it that a scenario may stop.
CACHES = {'A': '127.0.0.11', 'B': '127.0.0.12', 'C': '127.0.0.13', 'D': '127.0.0.14'}


class LabError(Exception):
    """A part of the laboratory itself does not work."""


def run(*command, env=None, check=True, input=None):
    """stdout (str) of a command; LabError if it fails and check is set."""
    done = subprocess.run(command, stdin=None if input else subprocess.DEVNULL, input=input,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, timeout=60,
                          encoding='utf-8', errors='replace')
    if check and done.returncode:
        raise LabError('%s: exit status %d: %s' % (' '.join(command), done.returncode, done.stdout))
    return done.stdout


def wait_for(predicate, seconds, what):
    """The first true value of predicate(); LabError if there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise LabError('%s: not within %g seconds' % (what, seconds))
        time.sleep(0.05)


def ask(server, name, kind, timeout=2.0, tries=2):
    """The answer (dns.message.Message) of a server to a question, over TCP if it is truncated.
    Raises dns.exception.Timeout, OSError."""
    query = dns.message.make_query(name, kind, want_dnssec=True)
    for last in [False] * (tries - 1) + [True]:
        try:
            return dns.query.udp_with_fallback(query, server, timeout)[0]
        except dns.exception.Timeout:
            if last:
                raise


def records(answer, kind):
    """The records (rdata) of a kind (str) in an answer, wherever CNAMEs lead, and their TTL."""
    found = [rrset for rrset in answer.answer
             if rrset.rdtype == dns.rdatatype.from_text(kind)]
    return [rdata for rrset in found for rdata in rrset], min(
        [rrset.ttl for rrset in found], default=0)


def digests(server, name):
    """The digests (set of hex str) in the 3 1 1 records of a server that answers."""
    return {rdata.cert.hex() for rdata in records(ask(server, name, 'TLSA'), 'TLSA')[0]
            if (rdata.usage, rdata.selector, rdata.mtype) == (3, 1, 1)}


class Daemon:
    """A program that runs until stop(). What it prints goes to LOG."""

    def __init__(self, log, *command, env=None):
        self.command, self.log, self.env, self.process = command, log, env, None

    def start(self):
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=self.env, start_new_session=True)
        return self

    def check(self):
        """LabError if it has ended."""
        if self.process.poll() is not None:
            with open(self.log, errors='replace') as log:
                raise LabError('%s ended: %s' % (self.command[0], log.read()[-2000:]))
        return True

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class Zone:
    """A zone with the host www, whose TLSA records a key hook looks after.

    name, kind  its name and one of KINDS
    port        where the host's service listens: the records are at _PORT._tcp.www.NAME
    """

    def __init__(self, name, kind, port):
        self.name, self.kind, self.port = name, kind, port
        self.servers, self.hook = KINDS[kind]
        self.host = 'www.' + name
        self.tlsa = '_%d._tcp.%s' % (port, self.host)

    def text(self, folder):
        """The zone file, without signatures and TLSA records."""
        lines = ['$ORIGIN %s.' % self.name, '$TTL %d' % TTL,
                 '@ IN SOA ns1 hostmaster (', '    1 ; serial', '    1 1 3600 1 )']
        for number, address in enumerate(self.servers, 1):
            lines += ['@ IN NS ns%d' % number, 'ns%d IN A %s' % (number, address)]
        lines += ['www IN A 127.0.0.1', '@ IN MX 10 www']
        if self.kind == 'include':
            lines.append('$INCLUDE %s' % os.path.join(folder, self.name + '.tlsa'))
        return '\n'.join(lines) + '\n'


class Lab:
    """All the servers, for a list of Zones. Everything is made in FOLDER; bin/ there comes first in
    the PATH of programs under test and their hooks (`path`).

    program     command (list) of the program under test
    """

    def __init__(self, folder, zones, program):
        self.folder, self.zones, self.program = folder, zones, program
        self.daemons, self.caches = [], {}
        self.path = self.file('bin') + ':/usr/sbin:/usr/bin:/sbin:/bin'

    def file(self, *parts):
        return os.path.join(self.folder, *parts)

    def write(self, name, text, mode=0o644):
        """Make a file in the folder, and return its path."""
        path = self.file(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def of_kind(self, *kinds):
        return [zone for zone in self.zones if zone.kind in kinds]

    def __enter__(self):
        try:
            for zone in self.zones:
                self.write(zone.name + '.zone', zone.text(self.folder))
            self.shims()
            self.start_knot()
            self.start_named()
            self.start_nsd()
            self.start_powerdns()
            self.start_caches()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        for daemon in self.daemons + [cache for cache in self.caches.values()]:
            daemon.stop()

    def daemon(self, name, *command):
        self.daemons.append(Daemon(self.file(name + '.log'), *command).start())
        return self.daemons[-1]

    def shims(self):
        """What hooks call by name, told where things are in this laboratory."""
        for name, command in (('knotc', '/usr/sbin/knotc -s %s' % self.file('knot.sock')),
                              ('rndc', '/usr/sbin/rndc -c %s' % self.file('rndc.conf')),
                              ('nsd-control', '/usr/sbin/nsd-control -c %s'
                               % self.file('nsd.conf'))):
            self.write('bin/' + name, '#!/bin/sh\nexec %s "$@"\n' % command, 0o755)
        # The records get the short TTL of this laboratory.
        self.write('bin/letsencrypt-tiny', '#!/bin/sh\ncase " $* " in *" tlsa "*) set -- "$@" --ttl'
                   ' %d ;; esac\nexec %s "$@"\n' % (TTL, ' '.join(self.program)), 0o755)
        # A signer whose clock is wrong, while the file beside its zone exists.
        self.write('bin/ldns-signzone', '#!/bin/sh\nfor word; do\n'
                   '    if [ -e "%s/$word.expired" ]; then\n'
                   '        set -- -i 20200101 -e 20200201 "$@"\n    fi\ndone\n'
                   'exec /usr/bin/ldns-signzone "$@"\n' % self.folder, 0o755)

    # -- authoritative servers

    def start_knot(self):
        os.mkdir(self.file('knot'))
        text = ['server:', '  listen: %s@53' % KNOT, '  rundir: %s' % self.folder,
                '  background-workers: 1', '  udp-workers: 1', '  tcp-workers: 1',
                'control:', '  listen: %s' % self.file('knot.sock'),
                'database:', '  storage: %s' % self.file('knot'),
                'log:', '  - target: stdout', '    any: warning',
                'remote:', '  - id: named', '    address: %s@53' % NAMED,
                '    via: ' + KNOT, 'acl:', '  - id: named', '    address: %s' % NAMED,
                '    action: [transfer, notify]',
                'policy:', '  - id: lab', '    algorithm: ecdsap256sha256',
                '    single-type-signing: on', '    dnskey-ttl: %d' % TTL,
                'template:', '  - id: default', '    storage: %s' % self.folder,
                '    file: %s.zone', '    zonefile-sync: -1', '    journal-content: changes', 'zone:']
        for zone in self.of_kind('knot'):
            text += ['  - domain: ' + zone.name, '    dnssec-signing: on', '    dnssec-policy: lab',
                     '    notify: named', '    acl: named']
        for zone in self.of_kind('bind', 'include'):
            text += ['  - domain: ' + zone.name, '    file: %s.knot' % zone.name,
                     '    zonefile-load: none', '    master: named', '    acl: named']
        config = self.write('knot.conf', '\n'.join(text) + '\n')
        self.daemon('knot', 'knotd', '-c', config)

    def start_named(self):
        self.write('tsig.key', run('tsig-keygen', 'letsencrypt-tiny'), 0o600)
        rndc = run('tsig-keygen', 'rndc')
        self.write('rndc.conf', rndc + 'options { default-key "rndc"; default-server %s; };\n'
                   % NAMED, 0o600)
        text = [rndc, 'include "%s";' % self.file('tsig.key'),
                'controls { inet %s port 953 allow { any; } keys { rndc; }; };' % NAMED,
                'options { directory "%s"; listen-on { %s; }; listen-on-v6 { none; };'
                % (self.folder, NAMED),
                'recursion no; dnssec-validation no; pid-file none; session-keyfile none;',
                'lock-file none; notify explicit; notify-delay 0; also-notify { %s; };' % KNOT,
                'allow-transfer { %s; }; transfer-source %s; notify-source %s;'
                % (KNOT, NAMED, NAMED), 'min-refresh-time 1; min-retry-time 1; };',
                'dnssec-policy lab { keys { csk lifetime unlimited algorithm ecdsap256sha256; };',
                'dnskey-ttl %d; max-zone-ttl 60; };' % TTL]
        for zone in self.zones:
            if zone.kind == 'knot':
                text.append('zone %s { type secondary; primaries { %s; }; };' % (zone.name, KNOT))
            elif zone.kind == 'bind':
                text.append(
                    'zone %s { type primary; file "%s"; dnssec-policy lab; update-policy { grant '
                    'letsencrypt-tiny name %s. TLSA; }; };' % (
                        zone.name, self.file(zone.name + '.zone'), zone.tlsa))
            elif zone.kind == 'include':
                self.write(zone.name + '.tlsa', '')
                text.append('zone %s { type primary; file "%s"; dnssec-policy lab; '
                            'inline-signing yes; };' % (
                                zone.name, self.file(zone.name + '.zone')))
        config = self.write('named.conf', '\n'.join(text) + '\n', 0o600)
        self.daemon('named', 'named', '-g', '-n', '1', '-c', config)

    def start_nsd(self):
        zones = self.of_kind('nsd')
        if not zones:
            return
        text = ['server:', '  ip-address: %s' % NSD, '  username: ""', '  chroot: ""',
                '  zonesdir: "%s"' % self.folder, '  database: ""', '  pidfile: ""',
                '  server-count: 1', '  zonelistfile: "%s"' % self.file('nsd.list'),
                '  xfrdfile: "%s"' % self.file('nsd.xfrd'), '  xfrdir: "%s"' % self.folder,
                'remote-control:', '  control-enable: yes',
                '  control-interface: "%s"' % self.file('nsd.sock')]
        for zone in zones:
            keys = run('sh', '-c', 'cd "$0" && ldns-keygen -a ECDSAP256SHA256 -k "$1"', self.folder,
                       zone.name).strip()
            zone.keys = self.file(keys)
            self.sign(zone)
            text += ['zone:', '  name: ' + zone.name,
                     '  zonefile: "%s"' % self.file(zone.name + '.signed')]
        config = self.write('nsd.conf', '\n'.join(text) + '\n')
        self.daemon('nsd', 'nsd', '-d', '-c', config)

    def sign(self, zone):
        """The first signed file of a zone of NSD; later ones are the key hook's."""
        run('ldns-signzone', '-u', '-n', '-o', zone.name, '-f', self.file(zone.name + '.signed'),
            self.file(zone.name + '.zone'), zone.keys)

    def start_powerdns(self):
        zones = self.of_kind('powerdns')
        if not zones:
            return
        self.write('powerdns.header', 'X-API-Key: of-no-value\n', 0o600)
        os.mkdir(self.file('pdns'))
        self.write('pdns/pdns.conf', '\n'.join([
            'launch=gsqlite3', 'gsqlite3-database=' + self.file('pdns', 'pdns.db'),
            'gsqlite3-dnssec=yes', 'local-address=' + POWERDNS, 'socket-dir=' + self.file('pdns'),
            'api=yes', 'webserver=yes', 'api-key=of-no-value', 'webserver-address=' + POWERDNS,
            'webserver-port=8081', 'default-ksk-algorithm=ecdsa256', 'guardian=no', 'daemon=no',
            'security-poll-suffix=', 'receiver-threads=1', 'distributor-threads=1']) + '\n')
        schema = '/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql'
        if not os.path.exists(schema):
            schema = '/usr/share/doc/pdns-backend-sqlite3/schema.sqlite3.sql'
        import sqlite3
        with open(schema) as file, sqlite3.connect(self.file('pdns', 'pdns.db')) as database:
            database.executescript(file.read())
        util = 'pdnsutil', '--config-dir=' + self.file('pdns')
        for zone in zones:
            run(*util, 'load-zone', zone.name, self.file(zone.name + '.zone'))
            run(*util, 'secure-zone', zone.name)
            run(*util, 'set-meta', zone.name, 'SOA-EDIT-API', 'DEFAULT')
        self.daemon('powerdns', 'pdns_server', '--config-dir=' + self.file('pdns'))

    # -- validating caches

    def start_caches(self):
        anchors, stubs = [], []
        for zone in self.zones:
            keys = wait_for(lambda zone=zone: self.keys_of(zone), 20, 'keys of ' + zone.name)
            anchors += ['  trust-anchor: "%s. DNSKEY %s"' % (zone.name, key) for key in keys]
            stubs += ['stub-zone:', '  name: ' + zone.name] + [
                '  stub-addr: ' + address for address in zone.servers]
        for name, address in CACHES.items():
            config = self.write('unbound-%s.conf' % name, '\n'.join([
                'server:', '  directory: "%s"' % self.folder, '  chroot: ""', '  username: ""',
                '  pidfile: ""', '  use-syslog: no', '  logfile: ""', '  do-daemonize: no',
                '  interface: ' + address, '  do-ip6: no', '  num-threads: 1',
                '  do-not-query-localhost: no', '  module-config: "validator iterator"',
                # What it learned of a server that was down must not outlive the records.
                '  infra-host-ttl: 1', '  infra-cache-max-rtt: 1000', '  val-bogus-ttl: 1',
                '  cache-max-negative-ttl: 1', '  qname-minimisation: no'] + anchors + [
                'remote-control:', '  control-enable: yes', '  control-use-cert: no',
                '  control-interface: "%s"' % self.file('unbound-%s.sock' % name)]
                + stubs) + '\n')
            self.caches[name] = Daemon(self.file('unbound-%s.log' % name), 'unbound', '-c',
                                       config).start()
        for name in CACHES:
            for zone in self.zones:
                wait_for(lambda: self.validates(name, zone), 20, '%s in cache %s' % (
                    zone.name, name))

    def keys_of(self, zone):
        """The DNSKEY records (str) of a zone, once all of its servers have them and sign."""
        found = []
        for server in zone.servers:
            try:
                answer = ask(server, zone.name, 'DNSKEY', 0.5)
            except (dns.exception.Timeout, OSError):
                return None
            if not records(answer, 'RRSIG')[0]:
                return None
            found = [rdata.to_text() for rdata in records(answer, 'DNSKEY')[0]]
        return found

    def validates(self, cache, zone):
        """Whether a cache gives secure answers for a zone."""
        self.caches[cache].check()
        try:
            answer = ask(CACHES[cache], zone.host, 'A', 0.5)
        except (dns.exception.Timeout, OSError):
            return False
        return bool(records(answer, 'A')[0] and answer.flags & dns.flags.AD)

    def refill(self, cache, zone):
        """Shell commands that make a cache forget a zone and ask for its records again."""
        return '%s -q -c %s flush_zone %s\ndig +short +tries=2 +time=2 @%s %s TLSA > /dev/null\n' % (
            shutil.which('unbound-control', path='/usr/sbin:/usr/bin'),
            self.file('unbound-%s.conf' % cache), zone.name, CACHES[cache], zone.tlsa)

    # -- the key hooks of examples/

    def key_hook(self, zone):
        """The path of the example for this kind of zone, made to fit this laboratory."""
        changes = {'knot': {'ZONE': zone.name},
                   'bind-nsupdate': {'KEY': self.file('tsig.key'), 'SERVER': '"%s 53"' % NAMED},
                   'bind-include': {'ZONE': zone.name,
                                    'ZONEFILE': self.file(zone.name + '.zone'),
                                    'INCLUDE': self.file(zone.name + '.tlsa')},
                   'nsd-ldns': {'ZONE': zone.name, 'SOURCE': self.file(zone.name + '.zone'),
                                'SIGNED': self.file(zone.name + '.signed'),
                                'KEYS': '"%s"' % getattr(zone, 'keys', '')},
                   'powerdns': {'URL': 'http://%s:8081/api/v1/servers/localhost/zones/%s.' % (
                                    POWERDNS, zone.name),
                                'HEADER': self.file('powerdns.header')}}[zone.hook]
        with open(os.path.join(EXAMPLES, 'key-hooks', zone.hook)) as file:
            text = file.read()
        for name, value in changes.items():
            text, count = re.subn('^%s=.*$' % name, '%s=%s' % (name, value), text, flags=re.M)
            if count != 1:
                raise LabError('examples/key-hooks/%s has no line %s=' % (zone.hook, name))
        return self.write('hooks/' + zone.name, text, 0o755)
