#!/bin/sh
# Runs inside the Vagrant box while it is made, after its packages are in: what makes a box of an installed Debian.
# LABEL is the root filesystem's.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin

# -- the user that vagrant logs in as, with the key that it replaces at first login --------------------------------------
useradd --create-home --shell /bin/bash --groups sudo vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/vagrant
chmod 0440 /etc/sudoers.d/vagrant
install -d -m 0700 -o vagrant -g vagrant /home/vagrant/.ssh
cat >/home/vagrant/.ssh/authorized_keys <<'END'
ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key
END
chmod 0600 /home/vagrant/.ssh/authorized_keys
chown vagrant: /home/vagrant/.ssh/authorized_keys

# -- ssh: quick to answer, with host keys of each machine's own ----------------------------------------------------------
cat >/etc/ssh/sshd_config.d/emucsd.conf <<'END'
UseDNS no
PasswordAuthentication no
PerSourcePenalties no
END
rm -f /etc/ssh/ssh_host_*
cat >/etc/systemd/system/emucsd-host-keys.service <<'END'
[Unit]
Description=SSH host keys of this machine
Before=ssh.service ssh.socket
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
ExecStart=/usr/bin/ssh-keygen -q -t ecdsa -N "" -f /etc/ssh/ssh_host_ecdsa_key
[Install]
WantedBy=multi-user.target
END
systemctl --quiet enable emucsd-host-keys.service ssh.service

# -- network: every wired interface by DHCP, names as the kernel gives them ----------------------------------------------
cat >/etc/systemd/network/80-wired.network <<'END'
[Match]
Name=eth* en*
[Network]
DHCP=yes
[DHCPv4]
ClientIdentifier=mac
END
systemctl --quiet enable systemd-networkd.service systemd-resolved.service
systemctl --quiet disable systemd-networkd-wait-online.service
echo emucsd >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 emucsd\n::1 localhost ip6-localhost ip6-loopback\n' >/etc/hosts

# -- nothing that wakes up by itself, nothing of this one machine ---------------------------------------------------------
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer fstrim.timer
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id
echo "LABEL=$LABEL / ext4 errors=remount-ro 0 1" >/etc/fstab

# -- boot: the disks that providers give, and GRUB without its own search for systems --------------------------------------
echo MODULES=list >/etc/initramfs-tools/conf.d/emucsd
for module in virtio_pci virtio_blk virtio_scsi sd_mod ahci ata_piix nvme mptspi mptsas vmw_pvscsi hv_storvsc ext4 \
    crc32c_generic; do
    echo "$module"
done >>/etc/initramfs-tools/modules
printf 'do_symlinks = yes\nlink_in_boot = no\n' >/etc/kernel-img.conf
linux-update-symlinks install "$(cd /lib/modules && echo *)" "/boot/vmlinuz-$(cd /lib/modules && echo *)"
update-initramfs -u -k all
mkdir -p /boot/grub/i386-pc
cat >/boot/grub/grub.cfg <<END
serial --unit=0 --speed=115200
terminal_output console serial
search --no-floppy --set=root --label $LABEL
linux /vmlinuz root=LABEL=$LABEL ro net.ifnames=0 quiet console=tty0 console=ttyS0,115200
initrd /initrd.img
boot
END
echo "search --no-floppy --set=root --label $LABEL
set prefix=(\$root)/boot/grub
configfile /boot/grub/grub.cfg" >/tmp/early.cfg
grub-mkimage -O i386-pc -p /boot/grub -c /tmp/early.cfg -o /boot/grub/i386-pc/core.img \
    biosdisk part_msdos ext2 search search_label configfile normal linux serial terminal echo boot minicmd
cp /usr/lib/grub/i386-pc/boot.img /boot/grub/i386-pc/
cp /usr/lib/grub/i386-pc/*.mod /usr/lib/grub/i386-pc/*.lst /boot/grub/i386-pc/
rm /tmp/early.cfg
ls -l /vmlinuz /initrd.img
