"""The Network Block Device protocol (fixed newstyle, simple replies): how jobs of the ``local`` engine read the drive.

Names and numbers are those of the protocol's own document, proto.md of the nbd project; qemu-img, nbd-client, libnbd
and fio speak it too. Only the standard library is used.
"""

from __future__ import annotations

import struct

INIT = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698

FIXED_NEWSTYLE, NO_ZEROES = 1, 2  # handshake and client flags

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
REP_ERR_UNSUP, REP_ERR_INVALID, REP_ERR_UNKNOWN = 0x80000001, 0x80000003, 0x80000006
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN = 1, 4, 8, 32, 64, 256

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES = 0, 1, 2, 3, 4, 6
CMD_FLAG_FUA = 1

OPTION = struct.Struct(">8sII")  # magic, option, bytes
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, bytes
EXPORT_REPLY = struct.Struct(">QH")  # size, flags: what EXPORT_NAME is answered with
INFO_EXPORT_REPLY = struct.Struct(">HQH")  # INFO_EXPORT, size, flags
INFO_BLOCK_REPLY = struct.Struct(">HIII")  # INFO_BLOCK_SIZE, least, preferred, most
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, bytes
REPLY = struct.Struct(">IIQ")  # magic, error, cookie

MOST_BYTES = 32 << 20  # of one request
MOST_OPTION_BYTES = 8192
EINVAL, EIO, ENOSPC, EPERM = 22, 5, 28, 1
