# SPDX-License-Identifier: GPL-2.0-or-later
#
# guest.S - a boot sector that dirties memory at a known place and counts on the serial port
#
# Needs no driver, so it runs on every machine type, under TCG and KVM.  All processors work: each
# writes to its own region, `pages` pages from 4 MiB * (1 + number of the processor), one word per
# page, again and again.  After each `lines` words the first processor prints its counter (8 hex
# digits, a newline).  vm.py patches the three numbers at the end of the sector.

        .equ    AP_VECTOR, 7                    # other processors start at 0x7000
        .equ    APIC, 0xfee00000

        .code16
        .globl  start
start:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        inb     $0x92, %al
        orb     $2, %al
        outb    %al, $0x92                      # address line 20 on
        lgdtl   gdt_pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmp    $8, $protected

        .code32
protected:
        movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $0x6f00, %esp

        movl    $1, %ebx
        lock xaddl %ebx, processors             # ebx: number of this processor
        testl   %ebx, %ebx
        jnz     work
        movb    $0xea, 0x7000                   # ljmp $0, $start
        movl    $start, 0x7001
        movw    $0, 0x7003
        movl    $0x000c4500, APIC + 0x300       # INIT to all but self
        # The others need about 10 ms to come up.  Time, not a count: a KVM without hardware support
        # for 32-bit code interprets each instruction, and a count that is long enough here takes
        # it 14 s.
        rdtsc
        movl    %eax, %ecx
1:      pause
        rdtsc
        subl    %ecx, %eax
        cmpl    $0x4000000, %eax                # clock cycles
        jb      1b
        movl    $0x000c4600 + AP_VECTOR, APIC + 0x300

work:
        incl    %ebx
        shll    $22, %ebx                       # ebx: region
        xorl    %ebp, %ebp                      # ebp: counter
        xorl    %edi, %edi                      # edi: page
        movl    lines, %edx                     # edx: words until the next line
again:
        movl    idle, %ecx
        jecxz   2f
1:      pause
        loop    1b
2:
        incl    %ebp
        movl    %edi, %eax
        shll    $12, %eax
        movl    %ebp, %ecx
        andl    $0xffc, %ecx
        addl    %ecx, %eax
        movl    %ebp, (%ebx, %eax)
        incl    %edi
        cmpl    pages, %edi
        jb      3f
        xorl    %edi, %edi
3:
        decl    %edx
        jnz     again
        movl    lines, %edx
        cmpl    $0x400000, %ebx
        jne     again

        movl    $8, %ecx                        # the first processor prints
        movl    %ebp, %esi
4:      roll    $4, %esi
        movl    %esi, %eax
        andl    $15, %eax
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     5f
        addb    $'a' - '0' - 10, %al
5:      call    put
        loop    4b
        movb    $10, %al
        call    put
        jmp     again

put:
        pushl   %edx
        pushl   %eax
        movw    $0x3fd, %dx
6:      inb     %dx, %al
        testb   $0x20, %al
        jz      6b
        popl    %eax
        movw    $0x3f8, %dx
        outb    %al, %dx
        popl    %edx
        ret

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9a000000ffff
        .quad   0x00cf92000000ffff
gdt_pointer:
        .word   23
        .long   gdt
processors:
        .long   0

        .org    498
pages:  .long   256
lines:  .long   4096
idle:   .long   0
        .word   0xaa55
