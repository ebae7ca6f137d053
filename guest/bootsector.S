/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bootsector.S - a 512-byte guest that counts through memory, network and disk, and checks itself
 *
 * Theory of operation. After the BIOS has loaded it, it runs alone in 32-bit protected mode without
 * paging or interrupts, the same under TCG and KVM. A 64-bit counter rises by one per step:
 *
 *  memory   step c writes to page c % 256 of the megabyte at 1 MiB: the high half of c into the
 *           first 32-bit word, the low half into the next WORDS - 1. Before that it checks that
 *           these words still hold c - 256, what the last lap left there. The address behind the
 *           first wrong word is kept as the error word, for good. (WORDS is small by default
 *           because a KVM that emulates such a guest takes 0.6 us for each word.)
 *  network  every STRIDE steps one broadcast frame leaves through an NE2000 at port 0x300
 *           (-device ne2k_isa), and PERIOD ticks of the timer pass (about 500 frames/s).
 *  disk     every 1024 steps, before that step's frame, sector 1 + (c / 1024) % 64 of the first ATA
 *           disk is written by PIO, and the write has completed when the frame leaves. Machines
 *           without that disk (q35, microvm) are seen by its status port, and nothing is written.
 *  serial   every 8192 steps the low half of the counter on COM1, as a line of 8 hex digits.
 *
 * A frame, and also the start of each written sector (all little endian but the Ethernet header):
 *
 *   0  destination, 6 x 0xff     6  source, the card's MAC      12  ethertype 0x88b5
 *  14  "PLXB"    18  error word, 0 = no error    22  counter, 64 bit    30  STRIDE    34..59  any
 *
 * It waits for the disk without a deadline: a disk that hangs stops the frames, which whoever
 * watches them notices (bootsector_watch.py).
 */
#ifndef STRIDE
#define STRIDE 8        /* steps per frame; a power of two, at most 128 */
#endif
#ifndef PERIOD
#define PERIOD 2386     /* timer ticks (1193182 Hz) per frame, below 65536 */
#endif
#ifndef WORDS
#define WORDS 32        /* 32-bit words per page that are written and checked, 2 to 1024 */
#endif
#define FRAME_LEN 60
#define AREA 0x100000   /* 256 pages */
#define END 0xff        /* ends a register table */

        .code16
        .globl  _start
_start:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdtw   gdtr
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpw   $8, $protected

        .code32
protected:
        pushw   $16
        popw    %ax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $0x7c00, %esp
        cld
        movb    $0x34, %al              /* timer 0: count down from 65536 and around */
        outb    %al, $0x43
        movb    $0, %al
        outb    %al, $0x40
        outb    %al, $0x40
        movl    $init_table, %esi
        call    set_registers
        /* The card's address, each byte twice; the last table left the data port in reach. */
        movb    $0x10, %dl
        movl    $source, %edi
        pushl   $6
        popl    %ecx
1:      insb
        inb     %dx, %al
        loop    1b

step:
        movl    $counter, %ebp
        movl    (%ebp), %ebx            /* low half */
        movl    4(%ebp), %edx           /* high half */
        movzbl  %bl, %edi
        shll    $12, %edi
        addl    $AREA, %edi
        pushl   %edi

        movl    %ebx, %eax              /* no check in the first lap */
        shrl    $8, %eax
        orl     %edx, %eax
        jz      write
        movl    %ebx, %ecx
        subl    $256, %ecx
        movl    %edx, %eax
        sbbl    $0, %eax
        scasl
        jne     wrong
        movl    %ecx, %eax
        call    words
        repe scasl
        je      write
wrong:
        cmpl    $0, error-counter(%ebp)
        jne     write
        movl    %edi, error-counter(%ebp)
write:
        popl    %edi
        movl    %edx, %eax
        stosl
        movl    %ebx, %eax
        call    words
        rep stosl

        testb   $STRIDE - 1, %bl
        jnz     next
        testl   $1023, %ebx
        jnz     frame

        /* Disk: LBA28 write of one sector, the frame and whatever lies behind it. */
        movw    $0x1f6, %dx
        movb    $0xe0, %al              /* first drive: the BIOS may have selected the second */
        outb    %al, %dx
        incl    %edx
        inb     %dx, %al
        cmpb    $0x50, %al              /* ready and idle; 0 or 0xff where no disk is */
        jne     frame
        movb    $0xf2, %dl
        movb    $1, %al                 /* one sector */
        outb    %al, %dx
        incl    %edx
        movb    %bh, %al
        shrb    $2, %al
        incl    %eax
        outb    %al, %dx                /* LBA 0..7: 1..64 */
        movb    $0, %al
        incl    %edx
        outb    %al, %dx
        incl    %edx
        outb    %al, %dx
        movb    $0xf7, %dl
        movb    $0x30, %al
        outb    %al, %dx
1:      inb     %dx, %al
        testb   $8, %al
        jz      1b
        movb    $0xf0, %dl
        movl    $message, %esi
        xorl    %ecx, %ecx
        incb    %ch
        rep outsw
        movb    $0xf7, %dl
1:      inb     %dx, %al
        testb   %al, %al
        js      1b

frame:
        movl    $frame_table, %esi
        call    set_registers
        movb    $0x10, %dl
        pushl   %esi
        movl    $message, %esi
        movb    $FRAME_LEN, %cl
        rep outsb
        popl    %esi
        call    set_registers

        testl   $8191, %ebx
        jnz     pace
        movw    $0x3f8, %dx
        movb    $8, %cl
1:      roll    $4, %ebx
        movb    %bl, %al
        andb    $15, %al
        cmpb    $10, %al                /* to a hex digit, an old trick */
        sbbb    $0x69, %al
        das
        outb    %al, %dx
        loop    1b
        movb    $'\n', %al
        outb    %al, %dx

pace:   /* last is what the timer said at the last frame */
        movb    $0, %al
        outb    %al, $0x43
        inb     $0x40, %al
        movb    %al, %ah
        inb     $0x40, %al
        xchgb   %al, %ah
        movw    last-counter(%ebp), %cx
        subw    %ax, %cx
        cmpw    $PERIOD, %cx
        jb      pace
        movw    %ax, last-counter(%ebp)

next:
        incl    (%ebp)
        jnz     step
        incl    4(%ebp)
        jmp     step

words:  /* Sets ecx to the words of a page in use but the first. */
        xorl    %ecx, %ecx
        movw    $WORDS - 1, %cx
        ret

set_registers: /* Writes the (register, value) pairs at esi; leaves esi behind the end. */
        xorl    %ecx, %ecx
        movb    $3, %dh
1:      lodsb
        testb   %al, %al
        js      2f
        movb    %al, %dl
        outsb
        jmp     1b
2:      ret

init_table:
        .byte   0x00, 0x21              /* stop */
        .byte   0x0e, 0x48              /* byte-wide transfers */
        .byte   0x0c, 0x20              /* receive nothing */
        .byte   0x0d, 0x00              /* transmit for real, not in loopback */
        .byte   0x0f, 0x00              /* no interrupts */
        .byte   0x04, 0x40              /* transmit from card page 0x40 */
        .byte   0x08, 0x00, 0x09, 0x00, 0x0a, 12, 0x0b, 0x00, 0x00, 0x0a  /* read 12 bytes at 0 */
        .byte   END
frame_table:
        .byte   0x08, 0x00, 0x09, 0x40, 0x0a, FRAME_LEN, 0x0b, 0x00, 0x00, 0x12 /* write */
        .byte   END
        .byte   0x05, FRAME_LEN, 0x06, 0x00, 0x00, 0x26                         /* send it */
        .byte   END

        .balign 4
gdt:    .word   0                       /* the null entry is never read: gdtr lives in it */
gdtr:   .word   3 * 8 - 1
        .long   gdt
        .quad   0x00cf9a000000ffff      /* 8: code, flat */
        .quad   0x00cf92000000ffff      /* 16: data, flat */

message:
        .byte   0xff, 0xff, 0xff, 0xff, 0xff, 0xff
source: .byte   0, 0, 0, 0, 0, 0
        .byte   0x88, 0xb5
        .ascii  "PLXB"
error:  .long   0
counter: .quad  0
        .long   STRIDE
last:   .word   0

        .org    510
        .word   0xaa55
