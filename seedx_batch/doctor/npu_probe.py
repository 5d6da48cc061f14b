"""What torch_npu sees, asked in a process of its own: `python -m seedx_batch.doctor.npu_probe` prints one JSON object.

Where this was imported, a device would be in use, and a forked engine could not have it; nobody imports this.
"""

import json
import sys


def main() -> None:
    """Print number, names and free and total bytes of the visible devices, and the SoC's number."""
    import torch_npu

    npu = torch_npu.npu
    num = npu.device_count()
    told = {
        "names": [npu.get_device_name(number) for number in range(num)],
        "memory": [list(npu.mem_get_info(number)) for number in range(num)],
        "soc": npu.get_soc_version() if num else None,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
