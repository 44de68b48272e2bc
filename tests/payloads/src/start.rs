//! Entry at CPL0 in long mode, page tables, and the way down to CPL3.

use core::arch::global_asm;

// Register use: RSI holds the zero page's address (Linux's 64-bit boot protocol) and is handed on in RDI.
// Page tables: 4 GiB mapped one to one with 2 MiB pages, everything writable and accessible to CPL3. `memory::map` adds
// what lies above. SSE is switched on because compiled Rust uses it.
global_asm!(
    ".globl _start",
    "_start:",
    "    cli",
    "    mov r15, rsi",
    "    mov al, 0xFF", // every line of both interrupt controllers masked: only MSI-X may interrupt
    "    out 0x21, al",
    "    out 0xA1, al",
    "    lgdt [rip + gdt_pointer]",
    "    lidt [rip + idt_pointer]",
    "    lea rdi, [rip + page_directories]",
    "    mov rax, 0x87", // present, writable, user, 2 MiB
    "    mov ecx, 2048",
    "2:  mov [rdi], rax",
    "    add rax, 0x200000",
    "    add rdi, 8",
    "    dec ecx",
    "    jnz 2b",
    "    lea rdi, [rip + pdpt]",
    "    lea rax, [rip + page_directories]",
    "    or rax, 7",
    "    mov ecx, 4",
    "3:  mov [rdi], rax",
    "    add rax, 0x1000",
    "    add rdi, 8",
    "    dec ecx",
    "    jnz 3b",
    "    lea rax, [rip + pdpt]",
    "    or rax, 7",
    "    mov [rip + pml4], rax",
    "    lea rax, [rip + pml4]",
    "    mov cr3, rax",
    "    mov rax, cr0",
    "    and rax, ~4", // EM
    "    or rax, 2",   // MP
    "    mov cr0, rax",
    "    mov rax, cr4",
    "    or rax, 0x600", // OSFXSR, OSXMMEXCPT
    "    mov cr4, rax",
    // The TSS descriptor holds the TSS's address in pieces.
    "    lea rax, [rip + tss]",
    "    lea rdi, [rip + gdt_tss]",
    "    mov [rdi + 2], ax",
    "    shr rax, 16",
    "    mov [rdi + 4], al",
    "    mov [rdi + 7], ah",
    "    lea rax, [rip + interrupt_stack_end]",
    "    mov [rip + tss + 4], rax",
    // Every port is permitted by a map of zeros behind the TSS proper: some hypervisors that interpret an IN or OUT at
    // CPL3 look at the map although IOPL is 3.
    "    mov word ptr [rip + tss + 102], 104",
    "    mov ax, 0x28",
    "    ltr ax",
    // Vectors 0x40 to 0x47: interrupt gates to one entry each, 16 bytes apart; the addresses fit 32 bits.
    "    lea rsi, [rip + interrupt_entries]",
    "    lea rdi, [rip + idt + 0x40 * 16]",
    "    mov ecx, 8",
    "4:  mov rax, rsi",
    "    mov [rdi], ax",
    "    mov word ptr [rdi + 2], 8",
    "    mov word ptr [rdi + 4], 0x8E00",
    "    shr rax, 16",
    "    mov [rdi + 6], ax",
    "    add rsi, 16",
    "    add rdi, 16",
    "    dec ecx",
    "    jnz 4b",
    // The local APIC: x2APIC mode on (IA32_APIC_BASE bits 11 and 10), then software-enabled (SVR bit 8).
    "    mov ecx, 0x1B",
    "    rdmsr",
    "    or eax, 0xC00",
    "    wrmsr",
    "    mov ecx, 0x80F",
    "    mov eax, 0x1FF",
    "    xor edx, edx",
    "    wrmsr",
    "    lea rsp, [rip + interrupt_stack_end]",
    "    push 0x23",
    "    lea rax, [rip + stack_end]",
    "    push rax",
    "    push 0x3202", // IOPL 3, interrupts on
    "    push 0x1B",
    "    lea rax, [rip + user_entry]",
    "    push rax",
    "    mov rdi, r15",
    "    iretq",
    "user_entry:",
    "    xor ebp, ebp",
    "    call {main}",
    "    ud2",
    // Counts, tells the local APIC (x2APIC EOI register), returns.
    ".balign 16",
    "interrupt_entries:",
    ".set vector, 0",
    ".rept 8",
    "    lock inc dword ptr [rip + interrupt_counts + 4 * vector]",
    "    jmp interrupt_entry",
    "    .balign 16",
    "    .set vector, vector + 1",
    ".endr",
    "interrupt_entry:",
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    mov ecx, 0x80B",
    "    xor eax, eax",
    "    xor edx, edx",
    "    wrmsr",
    "    pop rdx",
    "    pop rcx",
    "    pop rax",
    "    iretq",
    ".section .data",
    ".balign 16",
    "gdt:",
    "    .quad 0",
    "    .quad 0x00AF9B000000FFFF", // 0x08 code, CPL0
    "    .quad 0x00CF93000000FFFF", // 0x10 data, CPL0
    "    .quad 0x00AFFB000000FFFF", // 0x18 code, CPL3
    "    .quad 0x00CFF3000000FFFF", // 0x20 data, CPL3
    "gdt_tss:",
    "    .quad 0x0000890000002FFF", // 0x28 task state segment with I/O permissions
    "    .quad 0",
    "gdt_pointer:",
    "    .word 55",
    "    .quad gdt",
    "idt_pointer:",
    "    .word 4095",
    "    .quad idt",
    ".balign 4",
    ".globl interrupt_counts",
    "interrupt_counts: .skip 32",
    ".section .bss",
    ".balign 4096",
    ".globl pml4",
    "pml4: .skip 4096",
    ".globl pdpt",
    "pdpt: .skip 4096",
    "page_directories: .skip 16384",
    "idt: .skip 4096",
    "tss: .skip 12288",
    "    .skip 16384",
    "interrupt_stack_end:",
    "    .skip 262144",
    "stack_end:",
    ".section .text",
    main = sym crate::main,
);

// The prebuilt `alloc` refers to these two although nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
