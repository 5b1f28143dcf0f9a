"""The services that use a line's live files, and what clients see of them: nginx and postfix as
servers; probes in Python, openssl s_client and posttls-finger as clients that obey DANE."""
import base64
import hashlib
import os
import socket
import ssl
import subprocess
import threading
import time

import dns.exception
import dns.flags
import dns.rcode

from dane.servers import CACHES, EXAMPLES, Daemon, LabError, ask, records, run, wait_for


class Nginx:
    """nginx at a zone's port, with the live files of a line."""
    smtp = False

    def __init__(self, lab, zone, line):
        self.zone, folder = zone, zone.name + '.nginx'
        os.mkdir(lab.file(folder))
        paths = ''.join('%s_temp_path %s;' % (name, lab.file(folder, name)) for name in (
            'client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
        self.config = lab.write(
            folder + '/nginx.conf',
            'daemon off; user root; worker_processes 1; pid %s;\n'
            'events { worker_connections 128; }\n'
            'http { access_log off; %s\n'
            'server { listen 127.0.0.1:%d ssl; server_name %s; return 204;\n'
            'ssl_certificate %s; ssl_certificate_key %s; } }\n' % (
                lab.file(folder, 'pid'), paths, zone.port, zone.host, line.crt(), line.key()))
        command = 'nginx', '-e', 'stderr', '-c', self.config
        self.daemon = Daemon(lab.file(folder, 'log'), *command)
        self.reload = '[ ! -e %s ] || %s -q -s reload 2> /dev/null' % (
            lab.file(folder, 'pid'), ' '.join(command))

    def start(self):
        self.daemon.start()
        wait_for(lambda: self.daemon.check() and listens(self.zone.port), 10, 'nginx')

    def stop(self):
        self.daemon.stop()


class Postfix:
    """postfix's smtpd at a zone's port, with the file that examples/cert-hook makes."""
    smtp = True
    MASTER = '''
127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
proxymap  unix  - - n - - proxymap
rewrite   unix  - - n - - trivial-rewrite
tlsmgr    unix  - - n 1000? 1 tlsmgr
anvil     unix  - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
'''

    def __init__(self, lab, zone, line):
        self.zone, folder = zone, zone.name + '.postfix'
        self.folder = lab.file(folder)
        for name in 'queue', 'data':
            os.makedirs(lab.file(folder, name))
        run('chown', 'postfix:', lab.file(folder, 'data'))
        lab.write(folder + '/master.cf', self.MASTER.format(port=zone.port))
        lab.write(folder + '/main.cf', '\n'.join([
            'compatibility_level = 3.6', 'queue_directory = ' + lab.file(folder, 'queue'),
            'data_directory = ' + lab.file(folder, 'data'), 'maillog_file = /dev/stdout',
            'myhostname = ' + zone.host, 'mydestination =', 'inet_interfaces = 127.0.0.1',
            'smtpd_client_connection_count_limit = 0', 'alias_maps =', 'alias_database =',
            'smtpd_tls_security_level = may',
            'smtpd_tls_chain_files = ' + line.path('keys', 'live.pem')]) + '\n')
        # The example for many services, here only with postfix and as one that systemd never sees.
        with open(os.path.join(EXAMPLES, 'cert-hook')) as file:
            text = file.read()
        if text.count('\nSERVICES="') != 1:
            raise LabError('examples/cert-hook has no line SERVICES=')
        text = text.replace('\nSERVICES="', '\nSERVICES=""  # "')
        example = lab.write('hooks/%s.cert-hook' % zone.name, text, 0o755)
        self.daemon = Daemon(lab.file(folder, 'log'), 'postfix', '-c', self.folder, 'start-fg')
        # Before the first start there is nothing to reload.
        self.reload = ('%s && { ! postfix -c %s status || postfix -c %s reload; } 2> /dev/null'
                       % (example, self.folder, self.folder))

    def start(self):
        self.daemon.start()
        wait_for(lambda: self.daemon.check() and listens(self.zone.port), 20, 'postfix')

    def stop(self):
        if self.daemon.process:
            run('postfix', '-c', self.folder, 'abort', check=False)
        self.daemon.stop()


def listens(port):
    """Whether something accepts connections at this port."""
    try:
        socket.create_connection(('127.0.0.1', port), 1).close()
    except OSError:
        return False
    return True


# ---- clients ------------------------------------------------------------------------------------

known = {}   # SHA-256 of a certificate -> digest of its public key


def key_digest(der):
    """SHA-256 (hex) of the public key in a certificate (DER bytes), as openssl finds it."""
    name = hashlib.sha256(der).digest()
    if name not in known:
        pem = subprocess.run(['openssl', 'x509', '-inform', 'DER', '-noout', '-pubkey'], input=der,
                             stdout=subprocess.PIPE, check=True).stdout
        spki = base64.b64decode(b''.join(pem.split(b'\n')[1:-2]))
        known[name] = hashlib.sha256(spki).hexdigest()
    return known[name]


def presented(service):
    """The certificate (DER bytes) that a service shows now. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(('127.0.0.1', service.zone.port), 5) as plain:
        if service.smtp:
            with plain.makefile('rwb') as stream:
                for command in b'', b'EHLO probe.example.org\r\n', b'STARTTLS\r\n':
                    stream.write(command)
                    stream.flush()
                    while stream.readline()[3:4] == b'-':
                        pass
        with context.wrap_socket(plain, server_hostname=service.zone.host) as secured:
            return secured.getpeercert(True)


class Probes:
    """Ten times a second, by one cache and the other, what a client that obeys DANE would do, and
    every two seconds the same by programs of others.

    ok, judged      probes and others' judgements that went well
    failed          list of (time, text): the service's key is in no record, or the like
    deferred        list of (time, text): no secure answer, so that a client would try again later
    late            probes that took longer than a client may hold the records
    """

    def __init__(self, lab, service):
        self.lab, self.service, self.zone = lab, service, service.zone
        self.ok, self.judged, self.late, self.failed, self.deferred = 0, 0, 0, [], []
        self.stopped, self.lock = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self.repeat, args=work, daemon=True) for work in (
            (0, 0.2, self.probe, ['A']), (0.1, 0.2, self.probe, ['B']),
            (0, 2 if not service.smtp else 0.5, self.judge, ['A', 'B']))]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            if thread.ident:
                thread.join()

    def repeat(self, delay, interval, probe, caches):
        """Call probe() with one cache after the other until stop(), and sort the results."""
        due, count = time.monotonic() + delay, 0
        while not self.stopped.wait(max(0, due - time.monotonic())):
            due = max(due + interval, time.monotonic() - interval)
            cache, count = caches[count % len(caches)], count + 1
            try:
                bad, text = probe(cache)
            except Exception as error:   # whatever it is, the client got no further
                bad, text = self.failed, repr(error)
            if bad is not None:
                with self.lock:
                    bad.append((time.time(), 'cache %s: %s' % (cache, text)))

    def secure(self, cache):
        """(digests, TTL) in the records of a cache, or None and why there is no secure answer."""
        try:
            answer = ask(CACHES[cache], self.zone.tlsa, 'TLSA')
        except (dns.exception.Timeout, OSError) as error:
            return None, repr(error)
        if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return None, dns.rcode.to_text(answer.rcode())
        if not answer.flags & dns.flags.AD:
            return None, 'no AD'
        found, ttl = records(answer, 'TLSA')
        return [rdata.cert.hex() for rdata in found
                if (rdata.usage, rdata.selector, rdata.mtype) == (3, 1, 1)], ttl

    def probe(self, cache):
        """One look at the records, and at the service. Returns where it belongs, and why."""
        found, ttl = self.secure(cache)
        start = time.monotonic()
        if found is None:
            return self.deferred, ttl
        if not found:
            return self.failed, 'no records'
        key = key_digest(presented(self.service))
        if time.monotonic() - start > ttl + 1:
            with self.lock:
                self.late += 1
        elif key not in found:
            return self.failed, 'the service has %.8s, the records are %s, TTL %d' % (
                key, ' '.join(digest[:8] for digest in found), ttl)
        else:
            with self.lock:
                self.ok += 1
        return None, ''

    def judge(self, cache):
        """The same by openssl, or for mail by posttls-finger."""
        if self.service.smtp:
            said = self.finger(cache)
            good = 'Verified TLS connection established' in said
        else:
            found, ttl = self.secure(cache)
            if not found:
                return None, ''     # that is the probes' to tell
            command = ['openssl', 's_client', '-connect', '127.0.0.1:%d' % self.zone.port,
                       '-servername', self.zone.host, '-verify_return_error', '-brief',
                       '-dane_tlsa_domain', self.zone.host]
            for digest in found:
                command += ['-dane_tlsa_rrdata', '3 1 1 ' + digest]
            start = time.monotonic()
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=20)
            said, good = done.stdout.decode(errors='replace'), done.returncode == 0
            if time.monotonic() - start > ttl + 1:
                return None, ''
        if not good:
            return self.failed, said.strip()[-400:]
        with self.lock:
            self.judged += 1
        return None, ''

    def finger(self, cache):
        """What posttls-finger says, which asks the resolver in /etc/resolv.conf."""
        command = ['posttls-finger', '-c', '-l', 'dane-only', '[%s]:%d' % (
            self.zone.host, self.zone.port)]
        if cache != 'A':    # a mount namespace of its own, with the other resolv.conf
            command = ['unshare', '--mount', 'sh', '-c', 'mount --bind "$0" /etc/resolv.conf &&'
                       ' exec "$@"', self.lab.file('resolv-%s.conf' % cache)] + command
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=30).stdout.decode(errors='replace')
