//! A kernel of a few instructions for the real Firecracker: says [`UP`] on the first serial port, then
//! [`TICK`] again and again, and resets the machine when the keyboard controller has a key (Ctrl+Alt+Del).

pub(crate) const UP: &str = "toy kernel is up";
pub(crate) const TICK: &str = "toy tick";
/// Where it is loaded; Firecracker takes nothing below 1 MiB.
const ADDRESS: u64 = 0x10_0000;
/// Looks at the keyboard controller between two ticks: each leaves the guest, about 2 µs, up to 100 under nesting.
const LOOKS: u32 = 2000;
const HEADERS: usize = 64 + 56;

/// `mov rsi, text; mov ecx, len; mov dx, 0x3f8; 1: lodsb; out dx, al; loop 1b`
fn say(code: &mut Vec<u8>, text: u64, length: usize) {
    code.extend([0x48, 0xbe]);
    code.extend(text.to_le_bytes());
    code.push(0xb9);
    code.extend(u32::try_from(length).unwrap().to_le_bytes());
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xac, 0xee, 0xe2, 0xfc]);
}

/// The ELF file.
pub(crate) fn kernel() -> Vec<u8> {
    let (up, tick) = (format!("{UP}\r\n"), format!("{TICK}\r\n"));
    let texts = ADDRESS + 0x200;
    let mut code = Vec::new();
    say(&mut code, texts, up.len());
    let again = code.len();
    code.push(0xb9); // mov ecx, LOOKS
    code.extend(LOOKS.to_le_bytes());
    // 1: in al, 0x64; test al, 1; jnz end; dec ecx; jnz 1b
    code.extend([0xe4, 0x64, 0xa8, 0x01, 0x75, 0x00, 0xff, 0xc9, 0x75, 0xf6]);
    let jump = code.len() - 5;
    say(&mut code, texts + up.len() as u64, tick.len());
    let back = again as i64 - (code.len() as i64 + 5);
    code.push(0xe9); // jmp again
    code.extend(i32::try_from(back).unwrap().to_le_bytes());
    code[jump] = u8::try_from(code.len() - jump - 1).unwrap();
    code.extend([0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd]); // mov al, 0xfe; out 0x64, al; hlt; jmp .-1
    assert!(code.len() <= 0x200);
    code.resize(0x200, 0);
    code.extend(up.bytes().chain(tick.bytes()));
    elf(&code)
}

fn elf(code: &[u8]) -> Vec<u8> {
    let offset = HEADERS as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes()); // executable, x86-64
    }
    file.extend(1u32.to_le_bytes());
    for long in [ADDRESS, 64, 0] {
        file.extend(long.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 7] {
        file.extend(word.to_le_bytes()); // loadable; readable, writable, executable
    }
    for long in [offset, ADDRESS, ADDRESS, code.len() as u64, code.len() as u64, 8] {
        file.extend(long.to_le_bytes());
    }
    assert_eq!(file.len(), HEADERS);
    file.extend(code);
    file
}
