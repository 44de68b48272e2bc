//! Writes small guest programs in machine code (64-bit unless said otherwise).

/// Where payloads are loaded and entered.
pub const START: u64 = 0x10_0000;

/// A guest program. It begins with a place to jump to when a check fails, where the vCPU halts for good.
pub struct Payload {
    code: Vec<u8>,
}

const FAIL: i64 = 2;

impl Payload {
    pub fn new() -> Self {
        // jmp over; fail: hlt; jmp fail
        Self {
            code: vec![0xEB, 0x03, 0xF4, 0xEB, 0xFD],
        }
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }

    /// mov dx, port; mov al, value; out dx, al
    pub fn out8(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xBA, low, high, 0xB0, value, 0xEE])
    }

    /// mov dx, port; mov eax, value; out dx, eax
    pub fn out32(self, port: u16, value: u32) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xBA, low, high, 0xB8])
            .raw(&value.to_le_bytes())
            .raw(&[0xEF])
    }

    /// mov dx, port; in eax, dx
    pub fn in32(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xBA, low, high, 0xED])
    }

    /// mov dx, port; in al, dx
    pub fn in8(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xBA, low, high, 0xEC])
    }

    /// mov rbx, address
    pub fn rbx(self, address: u64) -> Self {
        self.raw(&[0x48, 0xBB]).raw(&address.to_le_bytes())
    }

    /// mov eax, [rbx]
    pub fn load_eax(self) -> Self {
        self.raw(&[0x8B, 0x03])
    }

    /// mov dword [rbx], value
    pub fn store32(self, value: u32) -> Self {
        self.raw(&[0xC7, 0x03]).raw(&value.to_le_bytes())
    }

    /// cmp eax, value; jne fail
    pub fn expect_eax(self, value: u32) -> Self {
        self.raw(&[0x3D]).raw(&value.to_le_bytes()).jne_fail()
    }

    /// jne fail
    pub fn jne_fail(self) -> Self {
        let next = i64::try_from(self.code.len()).unwrap() + 6;
        let distance = i32::try_from(FAIL - next).unwrap();
        self.raw(&[0x0F, 0x85]).raw(&distance.to_le_bytes())
    }

    /// Writes `text` to the serial port.
    pub fn print(self, text: &str) -> Self {
        text.bytes()
            .fold(self, |payload, byte| payload.out8(0x3F8, byte))
    }

    /// Powers off through the ACPI sleep control register, then halts.
    pub fn power_off(self) -> Self {
        self.out8(0x600, 0x34).halt()
    }

    /// hlt; jmp back to it
    pub fn halt(self) -> Self {
        self.raw(&[0xF4, 0xEB, 0xFD])
    }

    pub fn code(&self) -> &[u8] {
        &self.code
    }

    /// As an ELF file with a PVH note, whose 32-bit entry is [`START`] (pvh.rst; xen/include/public/elfnote.h). Only
    /// for code without `rbx`, which is 64-bit code.
    pub fn pvh_elf(&self) -> Vec<u8> {
        let mut elf = self.elf();
        // Sizes of name and content, type XEN_ELFNOTE_PHYS32_ENTRY, name, content.
        let words = [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000];
        let note: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // The second program header: PT_NOTE, at 0x800 of the file.
        elf[56] = 2;
        elf[120] = 4;
        for (at, value) in [(128, 0x800), (152, note.len() as u64)] {
            elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        elf[0x800..0x800 + note.len()].copy_from_slice(&note);
        // An ELF entry in nothing that is loaded: whoever takes it does not get far.
        elf[24..32].fill(0);
        elf
    }

    /// As an ELF file that is loaded and entered at [`START`].
    pub fn elf(&self) -> Vec<u8> {
        let mut elf = vec![0; 0x1000];
        elf[..7].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1, 1]);
        elf[16] = 2;
        elf[18] = 62;
        let size = self.code.len() as u64;
        let fields = [
            (24, START),
            (32, 64),
            (72, 0x1000),
            (88, START),
            (96, size),
            (104, size),
        ];
        for (at, value) in fields {
            elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        elf.extend_from_slice(&self.code);
        elf
    }
}
