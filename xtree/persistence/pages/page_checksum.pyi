from typing_extensions import Buffer

KERNEL: str

def crc32c_of(data: Buffer, value: int = 0, *, portable: bool = False) -> int: ...
def page_crc_of(page: Buffer) -> int: ...

crc32c = crc32c_of
page_crc = page_crc_of
