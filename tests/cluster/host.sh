#!/bin/bash
# host.sh FOLDER NAME ROLE SECONDS WHEELS HIDDEN: the first process of a host of the lab; see lab.py, which calls it in new
# network, mount, PID and UTS namespaces. All processes of the host end with it, at the latest after SECONDS.
#
# FOLDER holds the host's own files: home, tmp, etc. ROLE is laptop (root, with this machine's files, its own home) or
# server (the user ubuntu, sshd, and nothing of this machine but the distribution; the folder WHEELS as ~/wheels, and
# not the folder HIDDEN).
set -euo pipefail
folder=$1 name=$2 role=$3 seconds=$4 wheels=$5 hidden=$6 # only from servers
mount --make-rprivate /
hostname "$name"
etc=$folder/etc
own() { # FILE: mounts etc/FILE over the machine's
    mount --bind "$etc/$1" "/etc/$1"
}
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" >"$etc/hosts"
: >"$etc/resolv.conf"
own hosts
own resolv.conf
mount -t tmpfs -o mode=1777 tmpfs /dev/shm

if [ "$role" = laptop ]; then
    # ssh goes by the home in passwd, not by HOME
    awk -F: -v OFS=: -v home="$folder/home" '$1 == "root" {$6 = home} 1' /etc/passwd >"$etc/passwd"
    own passwd
else
    { awk -F: '$1 != "ubuntu" && $3 != 1000' /etc/passwd; echo 'ubuntu:x:1000:1000::/home/ubuntu:/bin/bash'; } >"$etc/passwd"
    { awk -F: '$1 != "ubuntu" && $3 != 1000' /etc/group; echo 'ubuntu:x:1000:'; } >"$etc/group"
    { grep -v ^ubuntu: /etc/shadow; echo 'ubuntu:*:19000:0:99999:7:::'; } >"$etc/shadow"
    chmod 600 "$etc/shadow"
    for file in passwd group shadow; do own "$file"; done
    mkdir -p "$etc/ssh" /run/sshd
    [ -f "$etc/ssh/host_key" ] || ssh-keygen -q -t ed25519 -N '' -f "$etc/ssh/host_key"
    cat >"$etc/ssh/sshd_config" <<-END
	HostKey /etc/ssh/host_key
	PidFile none
	UsePAM no
	PasswordAuthentication no
	MaxStartups 100
	END
    own ssh
    [ ! -d /etc/xdg/pip ] || mount -t tmpfs tmpfs /etc/xdg/pip
    for path in /root /opt /usr/local/bin; do mount -t tmpfs tmpfs "$path"; done
    mkdir "$folder/home/wheels"
    mount --bind -o ro "$wheels" "$folder/home/wheels"
    mount --rbind "$folder/home" /mnt # the folder itself may be in /home
    mount -t tmpfs tmpfs /home
    mkdir /home/ubuntu
    mount --move /mnt /home/ubuntu
    chown ubuntu:ubuntu /home/ubuntu
fi
touch "$folder/ready.new"
mv "$folder/ready.new" "$folder/ready" # before the folder itself may be hidden
if [ "$role" = laptop ]; then
    mount --rbind "$hidden" /mnt # it may be in /tmp
    mount --bind "$folder/tmp" /tmp
    mkdir -p "$hidden"
    mount --move /mnt "$hidden"
else
    mount --bind "$folder/tmp" /tmp
    [ ! -d "$hidden" ] || mount -t tmpfs tmpfs "$hidden"
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e &
fi
cd /
sleep "$seconds" &
wait $! # also collects the processes that have lost their parents
