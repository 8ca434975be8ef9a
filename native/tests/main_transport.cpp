// rbee_transport_tests: the arena, both sides of it, the delivery to sockets; and the encoder of byte pairs.

#include "run.h"

// One array per test file.
extern const Test kBytePairsTests[];
extern const Test kDeliveryTests[];
extern const Test kFuzzTests[];
extern const Test kLayoutTests[];
extern const Test kRolesTests[];
extern const Test kThreadsTests[];
extern const Test kWakeupTests[];

int main(int argc, char** argv) {
    return run_tests(
        {kLayoutTests, kRolesTests, kDeliveryTests, kFuzzTests, kWakeupTests, kThreadsTests, kBytePairsTests}, argc,
        argv);
}
