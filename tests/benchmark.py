#!/usr/bin/env python3
"""Time, memory, requests and connections, side by side with acme-tiny 5.0.3 and certbot.

    python3 tests/benchmark.py [--quick] [--check]

All clients work against one Pebble, on the same Python, in turn, so that whatever else the machine
does hits all of them; medians are shown. Needs what tests/real_pebble.py needs: pebble and
pebble-challtestsrv on PATH, PEERS=FOLDER of a venv (of the Python below) with acme-tiny 5.0.3 and
certbot, LETSENCRYPT_TINY=the built single file. --check ends with status 1 if a hard bar is
missed twice in a row; the bars are those of at_most() below.
"""
import argparse
import asyncio
import collections
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from real_pebble import ACME_TINY, PROGRAM, Pebble, openssl, write

PYTHON = '/usr/bin/python3'  # the one of the single file's first line
IMPORTS = 'import argparse, configparser, json, hashlib'
PEERS = os.environ.get('PEERS', '')

# Started anew for each measurement, because the memory of a child counts from its parent's size.
STOPWATCH = '''
import os, sys, time
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
files = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
start = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, file_actions=files)
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - start
print(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, status)
'''

Sample = collections.namedtuple('Sample', 'wall cpu megabytes requests')


class Relay:
    """Counts connections and delays what passes: one round trip for the handshake of TCP, then
    half of one for all bytes in each direction."""

    def __init__(self, port, round_trip):
        self.target, self.delay, self.connections = port, round_trip / 2, 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self.serve, '127.0.0.1', 0), self.loop).result(10)
        self.url = 'https://127.0.0.1:%d/dir' % server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        self.connections += 1
        await asyncio.sleep(2 * self.delay)
        try:
            to_reader, to_writer = await asyncio.open_connection('127.0.0.1', self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self.pump(reader, to_writer), self.pump(to_reader, writer))

    async def pump(self, reader, writer):
        queue = asyncio.Queue()

        async def deliver():
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - self.loop.time())
                if not data:
                    writer.close()
                    return
                writer.write(data)
        delivery = self.loop.create_task(deliver())
        data = True
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b''
            queue.put_nowait((self.loop.time() + self.delay, data))
        await delivery


class Rig:
    def __init__(self, folder):
        self.folder = folder
        self.ca = Pebble(os.path.join(folder, 'ca'), {
            'PEBBLE_WFE_NONCEREJECT': '0', 'PEBBLE_AUTHZREUSE': '0'}, keyAlgorithm='ecdsa')
        self.ca.start()
        self.plain, self.far = Relay(self.ca.port, 0), Relay(self.ca.port, 0.05)
        self.environ = dict(os.environ, SSL_CERT_FILE=self.ca.bundle,
                            REQUESTS_CA_BUNDLE=self.ca.bundle)

    def run(self, command, environ=None):
        """One measured run; anything but success ends the benchmark."""
        log, mark = os.path.join(self.folder, 'output'), self.ca.mark()
        done = subprocess.run([PYTHON, '-IS', '-c', STOPWATCH, log] + command, check=True,
                              env=environ or self.environ, stdout=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, universal_newlines=True)
        wall, cpu, megabytes, status = map(float, done.stdout.split())
        if status:
            with open(log, encoding='utf-8', errors='replace') as file:
                sys.exit('%s\nfailed:\n%s' % (' '.join(command), file.read()))
        return Sample(wall, cpu, megabytes, len(self.ca.requests(mark)))


def names(count):
    return ['n%d.example.org' % n for n in range(count)]


class Client:
    """What is measured. It has its account, key and CSR before the clock runs."""
    peer = False

    def __init__(self, rig):
        self.rig, self.runs, self.commands = rig, 0, {}
        self.folder = tempfile.mkdtemp(dir=rig.folder)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def prepare(self, url, count):
        if (url, count) not in self.commands:
            self.commands[url, count] = self.made_ready(url, count)

    def command(self, url, count):
        """The command that gets one more certificate."""
        return self.commands[url, count]


class Ours(Client):
    name = 'letsencrypt-tiny renew'

    def made_ready(self, url, count):
        line = self.path('line-%d' % len(self.commands))
        os.mkdir(line)
        keys = {'max-key-age-days': 100, 'self-check': 'no', 'directory-url': url,
                'ca-bundle': self.rig.ca.bundle, 'challenge-dir': self.rig.ca.challenges,
                'account-key': line + '/account.key', 'certs': line + '/certs',
                'keys': line + '/keys', 'backups': line + '/backups',
                'post-certchange': shutil.which('true')}
        config = write(line + '/line.conf', 'domains = %s\n' % ' '.join(names(count)) + ''.join(
            '%s = %s\n' % item for item in keys.items()))
        program = [PYTHON, '-IS', PROGRAM, '-c', config, '-k']
        self.rig.run(program + ['init'])
        return program + ['renew']


class Alone(Client):
    name, script = 'acme_tiny.py', [PYTHON, ACME_TINY]

    def made_ready(self, url, count):
        account, csr = self.path('account.key'), self.path('%d.csr' % count)
        if not os.path.exists(account):
            write(account, openssl('genrsa', '2048'))
        openssl('req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                '-keyout', self.path('leaf.key'), '-out', csr, '-subj', '/', '-addext',
                'subjectAltName=' + ','.join('DNS:' + name for name in names(count)))
        command = self.script + ['--account-key', account, '--csr', csr, '--disable-check',
                                 '--acme-dir', self.rig.ca.challenges, '--directory-url', url]
        if count == 1:
            self.rig.run(command)
        return command


class AcmeTiny(Alone):
    name, peer, script = 'acme-tiny 5.0.3', True, [os.path.join(PEERS, 'bin', 'acme-tiny')]


class Certbot(Client):
    name, peer = 'certbot', True

    def made_ready(self, url, count):
        command = [os.path.join(PEERS, 'bin', 'certbot'), 'certonly', '-n', '--agree-tos',
                   '--register-unsafely-without-email', '--server', url, '--webroot', '-w',
                   self.rig.ca.webroot, '-d', ','.join(names(count))]
        for kind in ('config', 'work', 'logs'):
            command += ['--%s-dir' % kind, self.path(kind)]
        if count == 1:
            self.rig.run(command + ['--cert-name', 'first-%d' % len(self.commands)])
        return command

    def command(self, url, count):
        # Under a name of its own, or certbot would keep the certificate it has.
        self.runs += 1
        return super().command(url, count) + ['--cert-name', 'run-%d' % self.runs]


def issue(clients, relay, url, count, rounds, peer_rounds):
    """{client's name: (medians, connections)} of certificates for count names.

    Connections are counted by the relay in a run of its own, unless all runs go through it."""
    samples, connections = collections.defaultdict(list), {}
    for client in clients:
        for one in {relay.url, url}:
            client.prepare(one, count)
        before = relay.connections
        sample = client.rig.run(client.command(relay.url, count))
        connections[client.name] = relay.connections - before
        if relay.url == url:
            samples[client.name].append(sample)
    for number in range(rounds):
        for client in clients:
            if number < peer_rounds or not client.peer:
                samples[client.name].append(client.rig.run(client.command(url, count)))
    return {name: (Sample(*map(statistics.median, zip(*samples[name]))), connections[name])
            for name in samples}


def no_op(rig, ours, rounds):
    """{name: [samples]} of a daily run with nothing due, and how often it started openssl."""
    ours.prepare(rig.ca.url, 1)
    renew = ours.command(rig.ca.url, 1)
    tools = os.path.join(rig.folder, 'tools')
    calls = os.path.join(rig.folder, 'calls')
    if not os.path.exists(tools):
        os.mkdir(tools)
        write(os.path.join(tools, 'openssl'), '#!/bin/sh\necho >> %s\nexec %s "$@"\n' % (
            calls, shutil.which('openssl')), 0o755)
    environ = dict(rig.environ, PATH=tools + os.pathsep + os.environ['PATH'])
    write(calls, '')
    rig.run(renew, environ)
    if not os.path.getsize(calls):
        sys.exit('the openssl that counts its calls is not the one that renew uses')
    write(calls, '')
    rows = {'python3, nothing but imports': [PYTHON, '-IS', '-c', IMPORTS],
            'letsencrypt-tiny cron': renew[:-1] + ['cron']}
    samples = collections.defaultdict(list)
    for _ in range(rounds):
        for name, command in rows.items():
            samples[name].append(rig.run(command, environ))
    return samples, os.path.getsize(calls)


class Report:
    """The tables, and which bars were missed."""

    def __init__(self):
        self.missed, self.hard, self.checked = [], 0, 0

    def at_most(self, what, value, limit, unit, hard=True):
        """Note a bar that is missed; one that is not hard hangs on the machine, and is only told."""
        self.checked += 1
        if value > limit:
            self.missed.append('%s: %.3g %s, the bar is %.3g' % (what, value, unit, limit))
            self.hard += hard

    def table(self, title, head, rows):
        print('\n### %s\n| %s |\n|%s' % (title, ' | '.join(head), ' --- |' * len(head)))
        for row in rows:
            print('| %s |' % ' | '.join(row))
        sys.stdout.flush()

    def twice(self, measure):
        """What measure(report) prints and checks; where it misses a bar, once more."""
        before = list(self.missed), self.hard, self.checked
        measure(self)
        if self.missed != before[0]:
            print('\nMissed, measured again: %s' % '; '.join(self.missed[len(before[0]):]))
            self.missed, self.hard, self.checked = before
            measure(self)


def shown(sample, connections):
    return '%.3f / %.3f / %.0f / %.0f / %d' % (
        sample.wall, sample.cpu, sample.megabytes, sample.requests, connections)


def loopback(rig, clients, count, rounds):
    def measure(report):
        rows = issue(clients, rig.plain, rig.ca.url, count, rounds, rounds)
        report.table('%d names, loopback' % count, (
            'client', 'wall s / CPU s / MB / requests / connections'),
            [(name, shown(*row)) for name, row in rows.items()])
        for client in clients:
            if not client.peer:
                sample, connections = rows[client.name]
                what = '%s, %d names, ' % (client.name, count)
                report.at_most(what + 'requests', sample.requests, 2 * count + 9, '')
                report.at_most(what + 'connections', connections, 1, '')
                for peer in (AcmeTiny.name, Certbot.name):
                    report.at_most(what + 'time against ' + peer, sample.wall,
                                   rows[peer][0].wall, 's')
    return measure


def far_away(rig, clients, count, limit, rounds, peer_rounds):
    def measure(report):
        rows = issue(clients, rig.far, rig.far.url, count, rounds - 1, peer_rounds - 1)
        report.table('%d names, 50 ms round trip' % count, (
            'client', 'wall s / CPU s / MB / requests / connections'),
            [(name, shown(*row)) for name, row in rows.items()])
        sample, connections = rows[Ours.name]
        what = '%s, %d names, 50 ms round trip, ' % (Ours.name, count)
        report.at_most(what + 'time', sample.wall, limit, 's', hard=False)
        report.at_most(what + 'requests', sample.requests, 2 * count + 9, '')
        report.at_most(what + 'connections', connections, 1, '')
    return measure


def nothing_due(rig, ours, rounds):
    def measure(report):
        samples, calls = no_op(rig, ours, rounds)
        medians = {name: Sample(*map(statistics.median, zip(*rows)))
                   for name, rows in samples.items()}
        report.table('Nothing due', (
            'command', 'wall ms, best / median', 'MB', 'requests', 'of the imports alone'),
            [(name, '%.1f / %.1f' % (1000 * min(rows).wall, 1000 * medians[name].wall),
              '%.1f' % medians[name].megabytes, str(sum(row.requests for row in rows)),
              '%.2f x' % (medians[name].wall / next(iter(medians.values())).wall))
             for name, rows in samples.items()])
        print('\nopenssl was started %d times.' % calls)
        imports, cron = medians.values()
        report.at_most('cron with nothing due, time of the imports alone',
                       cron.wall / imports.wall, 1.6, 'x', hard=False)
        report.at_most('cron with nothing due, memory', cron.megabytes, 20, 'MB', hard=False)
        report.at_most('cron with nothing due, requests',
                       sum(row.requests for row in list(samples.values())[1]), 0, '')
        report.at_most('cron with nothing due, openssl processes', calls, 0, '')
    return measure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='fewer rounds, three minutes')
    parser.add_argument('--check', action='store_true', help='status 1 if a bar is missed')
    options = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix='benchmark-') as folder:
        rig = Rig(folder)
        try:
            clients = [Ours(rig), Alone(rig), AcmeTiny(rig), Certbot(rig)]
            # The bars: 1.6 times the imports; no slower than the peers; seconds far from the CA.
            report.twice(nothing_due(rig, clients[0], 30 if options.quick else 60))
            for count, rounds in ((1, 7), (10, 5), (50, 3)):
                report.twice(loopback(rig, clients, count, rounds if options.quick else 3 * rounds))
            for count, limit in ((1, 0.8), (10, 2.0)):
                rounds = (3, 1) if options.quick else (7, 3)
                report.twice(far_away(rig, clients, count, limit, *rounds))
        finally:
            rig.ca.stop()
    for miss in report.missed:
        print('MISSED ' + miss)
    print('\n%d bars checked, %d missed' % (report.checked, len(report.missed)))
    return 1 if options.check and report.hard else 0


if __name__ == '__main__':
    sys.exit(main())
