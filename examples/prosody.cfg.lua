-- Prosody: as /etc/prosody/conf.d/letsencrypt-tiny.cfg.lua, with your server's name instead of
-- www.example.org. It reads the key as its own user, so once, as root (new keys get the same
-- rights):
--     adduser --quiet prosody ssl-cert
--     chgrp ssl-cert /etc/ssl/private/letsencrypt /etc/ssl/private/letsencrypt/live.key
--     chmod 640 /etc/ssl/private/letsencrypt/live.key
VirtualHost "www.example.org"
    ssl = {
        certificate = "/etc/ssl/letsencrypt/live.crt";
        key = "/etc/ssl/private/letsencrypt/live.key";
    }
