/* Entry by PVH: 32-bit protected mode, paging off, interrupts off, ebx = hvm_start_info. */
.section .note.pvh, "a", @note
.align 4
    .long 4                         /* length of the name */
    .long 8                         /* length of the value, which of a 64-bit image QEMU reads as a pointer */
    .long 18                        /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_start

.section .boot.text, "ax", @progbits
.code32
.globl pvh_start
pvh_start:
    cli
    cld
    movl %ebx, %edi
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl  $0x620, %eax               /* PAE, OSFXSR, OSXMMEXCPT: compiled code uses SSE */
    movl %eax, %cr4
    movl $0xc0000080, %ecx          /* EFER */
    rdmsr
    orl  $0x900, %eax               /* LME, NXE */
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffffb, %eax          /* not CD, NW, EM */
    orl  $0x80010003, %eax          /* PG, WP, MP, PE */
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $0x08, $start_64

.code64
start_64:
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movl $0x10, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl %edi, %edi
    leaq stack_end(%rip), %rsp
    xorl %ebp, %ebp
    call {main}
1:  hlt
    jmp 1b

/* Exceptions: none is expected, so none returns. The processor pushes an error code for some; what is pushed here is on top. */
.balign 16
.globl exception_entries
exception_entries:
.set number, 0
.rept 32
    .balign 16
    pushq $number
    jmp exception_common
    .set number, number + 1
.endr
exception_common:
    popq %rdi
    movq %cr2, %rsi
    movq %rsp, %rdx
    andq $-16, %rsp
    call {exception}
1:  hlt
    jmp 1b

/* Interrupts: each is noted in its byte of PENDING and acknowledged. No register but one is touched. */
.balign 16
.globl interrupt_entries
interrupt_entries:
.set number, 0
.rept 32
    .balign 32
    pushq %rax
    movb $1, {pending} + number(%rip)
    movl $0xfee000b0, %eax          /* end of interrupt */
    movl $0, (%rax)
    popq %rax
    iretq
    .set number, number + 1
.endr

/* One that was withdrawn before the processor took it: nothing to acknowledge. */
.globl spurious_entry
spurious_entry:
    iretq

.section .rodata.boot, "a", @progbits
.align 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        /* 64-bit code */
    .quad 0x00cf92000000ffff        /* data */
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .long boot_gdt

/* The first 4 GiB as they are, in pages of 2 MiB. */
.section .data.boot, "aw", @progbits
.align 4096
boot_pml4:
    .quad boot_pdpt + 3
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 3
    .quad boot_pd + 0x1003
    .quad boot_pd + 0x2003
    .quad boot_pd + 0x3003
    .fill 508, 8, 0
boot_pd:
.set page, 0
.rept 2048
    .quad (page << 21) + 0x83
    .set page, page + 1
.endr

.section .bss.boot, "aw", @nobits
.align 16
    .skip 0x40000
stack_end:
    .skip 0x4000
.globl exception_stack_end
exception_stack_end:
    .skip 0x1000
.globl interrupt_stack_end
interrupt_stack_end:
