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
