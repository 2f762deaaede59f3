#!/bin/bash
# Makes this Debian 12 host a director, a real server or a client. May be run again at any time.
#
#   provision.sh lb BINARY UNIT CONFIG   director: install and (re)start lvsd
#   provision.sh rs VIP                  real server for DR: the VIP on lo, silent in ARP; a web server that says its name
#   provision.sh client                  curl
set -euo pipefail

die() {
    echo "provision.sh: $*" >&2
    exit 1
}

need() {
    local missing=() package
    for package; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    ((${#missing[@]} == 0)) && return
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
}

director() {
    local binary=$1 unit=$2 config=$3 interface
    [[ -f $binary ]] || die "no binary at $binary: build it with \`cargo xtask build --release\`"
    while read -r interface; do
        [[ -e /sys/class/net/$interface ]] ||
            die "$config names interface $interface, this host has: $(ls -x /sys/class/net)"
    done < <(awk '$1 == "interface" { print $2 }' "$config")
    need iproute2 tcpdump
    install -D -m 755 "$binary" /usr/sbin/lvsd
    install -D -m 644 "$unit" /etc/systemd/system/lvsd.service
    install -D -m 644 "$config" /etc/lvsd/lvsd.conf
    lvsd check /etc/lvsd/lvsd.conf
    systemctl daemon-reload
    systemctl enable lvsd.service
    # The new process adopts what the old one pinned: no connection breaks.
    systemctl restart lvsd.service
}

real_server() {
    local vip=$1
    need iproute2 python3
    # Both must hold before the VIP exists: answer ARP only for addresses of the interface that was asked, and
    # never use the VIP as the sender of an ARP request.
    cat >/etc/sysctl.d/50-lvs-real.conf <<END
net.ipv4.conf.all.arp_ignore = 1
net.ipv4.conf.all.arp_announce = 2
END
    sysctl -q -p /etc/sysctl.d/50-lvs-real.conf
    cat >/etc/systemd/system/lvs-vip.service <<END
[Unit]
Description=VIP on lo for direct routing
After=systemd-sysctl.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip address replace $vip/32 dev lo
ExecStop=/sbin/ip address delete $vip/32 dev lo

[Install]
WantedBy=multi-user.target
END
    mkdir -p /srv/lvs-web
    hostname >/srv/lvs-web/index.html
    echo fine >/srv/lvs-web/healthCheck
    cat >/etc/systemd/system/lvs-web.service <<END
[Unit]
Description=Web server that says the name of its host
After=network.target

[Service]
ExecStart=/usr/bin/python3 -m http.server 80 --directory /srv/lvs-web
DynamicUser=yes
AmbientCapabilities=CAP_NET_BIND_SERVICE
Restart=always

[Install]
WantedBy=multi-user.target
END
    systemctl daemon-reload
    systemctl enable lvs-vip.service lvs-web.service
    systemctl restart lvs-vip.service lvs-web.service
}

[[ $EUID == 0 ]] || die "must run as root"
case "${1:-} $#" in
    "lb 4") director "$2" "$3" "$4" ;;
    "rs 2") real_server "$2" ;;
    "client 1") need curl iproute2 ;;
    *) die "usage: provision.sh lb BINARY UNIT CONFIG | rs VIP | client" ;;
esac
