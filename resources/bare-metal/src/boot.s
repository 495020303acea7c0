# From the PVH entry (32-bit, paging off, ebx = start info) to ring 3 in long mode.
#
# A host without hardware virtualisation emulates ring 0 one instruction at a time, so this file does
# the least it can: page tables are laid out by the assembler, and everything else waits for ring 3.

    .set PRESENT_WRITE_USER, 7
    .set LARGE_PAGE, 0x87
    .set KERNEL_CODE, 0x08
    .set USER_CODE, 0x1b
    .set USER_DATA, 0x23
    .set TASK_STATE, 0x28
    .set MAPPED_GIB, 8

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                      # name size, value size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .data.pages, "aw"
    .balign 4096
    .global boot_pml4
boot_pml4:
    .quad boot_pdpt + PRESENT_WRITE_USER
    .fill 511, 8, 0
boot_pdpt:
    .set gib, 0
    .rept MAPPED_GIB
    .quad boot_directories + gib * 4096 + PRESENT_WRITE_USER
    .set gib, gib + 1
    .endr
    .fill 512 - MAPPED_GIB, 8, 0
boot_directories:
    .set page, 0
    .rept MAPPED_GIB * 512
    .quad page * 0x200000 + LARGE_PAGE
    .set page, page + 1
    .endr

    .data
    .balign 16
gdt:
    .quad 0
    .quad 0x00af9a000000ffff            # 0x08 ring 0 code, 64-bit
    .quad 0x00cf92000000ffff            # 0x10 ring 0 data
    .quad 0x00affa000000ffff            # 0x18 ring 3 code, 64-bit
    .quad 0x00cff2000000ffff            # 0x20 ring 3 data
gdt_task:
    .word 0x68 + 8192, 0                # 0x28 task state segment: the limit takes in the I/O bitmap
    .byte 0, 0x89, 0, 0
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 32 * 16 - 1
    .quad boot_idt

    # What ring 0 learned, for ring 3 (boot.rs mirrors this layout).
    .balign 8
    .global boot_facts
boot_facts:
    .quad 0                             # start info
    .quad 0                             # time stamp counter at the entry
    .long 0, 0, 0, 0                    # leaf 0x40000000
    .long 0, 0, 0, 0                    # leaf 0x40000001
    .long 0, 0, 0, 0                    # leaf 0x40000010
    .long 0, 0, 0, 0                    # leaf 0x15

    .bss
    .balign 4096
    .global boot_kvmclock
boot_kvmclock:
    .skip 4096
    .global boot_idt
boot_idt:
    .skip 32 * 16
task_state:                             # zeroes in its I/O bitmap permit every port to ring 3
    .skip 0x68 + 8192 + 8
    .balign 16
    .skip 16384
ring0_stack:
    .skip 262144
ring3_stack:

    .macro save_leaf leaf, slot
    mov eax, \leaf
    xor ecx, ecx
    cpuid
    mov dword ptr [boot_facts + 16 + 16 * \slot], eax
    mov dword ptr [boot_facts + 20 + 16 * \slot], ebx
    mov dword ptr [boot_facts + 24 + 16 * \slot], ecx
    mov dword ptr [boot_facts + 28 + 16 * \slot], edx
    .endm

    .section .text.boot, "ax"
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    mov esp, offset ring0_stack
    mov dword ptr [boot_facts], ebx
    rdtsc
    mov dword ptr [boot_facts + 8], eax
    mov dword ptr [boot_facts + 12], edx

    # CPUID is asked here, because ring 3 may see the real processor instead of the virtual one.
    save_leaf 0x40000000, 0
    save_leaf 0x40000001, 1
    save_leaf 0x40000010, 2
    mov eax, 0
    cpuid
    cmp eax, 0x15
    jb no_leaf_15
    save_leaf 0x15, 3
no_leaf_15:
    cmp dword ptr [boot_facts + 20], 0x4b4d564b     # "KVMK"
    jne no_kvmclock
    test dword ptr [boot_facts + 32], 8             # KVM_FEATURE_CLOCKSOURCE2
    jz no_kvmclock
    mov ecx, 0x4b564d01                             # MSR_KVM_SYSTEM_TIME_NEW
    mov eax, offset boot_kvmclock + 1
    xor edx, edx
    wrmsr
no_kvmclock:
    mov eax, offset task_state
    mov word ptr [gdt_task + 2], ax
    shr eax, 16
    mov byte ptr [gdt_task + 4], al
    mov byte ptr [gdt_task + 7], ah
    mov dword ptr [task_state + 4], offset ring0_stack
    mov word ptr [task_state + 0x66], 0x68          # offset of the I/O bitmap
    mov byte ptr [task_state + 0x68 + 8192], 0xff
    lgdt [gdt_pointer]

    mov eax, cr4
    or eax, 0x620                                   # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080                             # EFER
    rdmsr
    or eax, 0x100                                   # long mode enable
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3                             # caches on, no emulation, task not switched
    or eax, 0x80000003                              # paging, monitor coprocessor, protection
    mov cr0, eax
    .byte 0xea                                      # far jump into 64-bit code
    .long long_mode
    .word KERNEL_CODE

    .code64
long_mode:
    lidt [idt_pointer]
    mov ax, TASK_STATE
    ltr ax
    push USER_DATA
    push offset ring3_stack
    push 2                                          # flags: interrupts stay off, the guest polls
    push USER_CODE
    push offset ring3
    iretq

ring3:
    xor ebp, ebp
    call ring3_main
    ud2

    # Each exception goes back to ring 3 with its vector, error code, address and CR2, to be told.
    .balign 16
    .global exception_stubs
exception_stubs:
    .set vector, 0
    .rept 32
    .set has_error, (0x60227d00 >> vector) & 1
    .balign 16
    .if has_error == 0
    .byte 0x6a, 0                                   # push 0
    .endif
    .byte 0x6a, vector                              # push the vector
    jmp exception_common
    .set vector, vector + 1
    .endr

exception_common:
    pop rdi
    pop rsi
    mov rdx, qword ptr [rsp]
    mov rcx, cr2
    push USER_DATA
    push offset ring3_stack - 8
    push 2
    push USER_CODE
    push offset exception_main
    iretq
